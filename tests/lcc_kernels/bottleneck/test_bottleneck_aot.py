"""Every kernel compiles for sm_80 and sm_90 without a spilled register; resources.json says what each one takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
TABLE = json.loads((HERE / "resources.json").read_text())
TRITON = TABLE.pop("triton")
SHARED_MEMORY = {"80": 99 * 1024, "90": 227 * 1024}
QUICK = ["80:64:bfloat16", "90:128:bfloat16"]


def compiled(configs, cache):
    """Fresh figures, from a process in which Triton compiles whatever this one does, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = HERE.parents[2]
    environment |= {"PYTHONPATH": str(root), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "tests.lcc_kernels.bottleneck.aot", "--select", *configs]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    arch, head_dim, dtype = config.split(":")
    for name, kernel in TABLE[config].items():
        assert kernel["spilled"] == 0, name
        assert kernel["shared"] <= SHARED_MEMORY[arch], name
        products_fit_wgmma = arch == "90" and dtype != "float32" and int(head_dim) <= 128
        if products_fit_wgmma and name != "_reduce":
            assert kernel["wgmma"] > 0, name


def check(configs, cache):
    found = compiled(configs, cache)
    version = found.pop("triton")
    for config, kernels in found.items():
        assert all(kernel["spilled"] == 0 for kernel in kernels.values()), config
        if version == TRITON:
            assert kernels == TABLE[config], f"{config} changed: run python -m tests.lcc_kernels.bottleneck.aot --write"


@pytest.mark.slow
def test_a_fresh_compilation_agrees(tmp_path):
    check(QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ, reason="a minute of compilation: in CI")
def test_every_fresh_compilation_agrees(tmp_path):
    check([config for config in TABLE if config not in QUICK], tmp_path)
