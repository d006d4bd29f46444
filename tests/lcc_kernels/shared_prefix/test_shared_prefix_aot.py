"""The kernel compiles for sm_80 and sm_90 with no spilled register and with asynchronous copies: see resources.json."""

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
QUICK = ["80:96:float32:16", "90:128:bfloat16:64", "90:128:bfloat16:64:whole"]


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    arch, _, dtype, rows = config.split(":")[:4]
    assert TABLE[config]["spilled"] == 0
    assert TABLE[config]["shared"] <= SHARED_MEMORY[arch]
    assert TABLE[config]["copies"] > 0, "the keys to come are not loaded while those at hand are multiplied"
    assert (TABLE[config]["wgmma"] > 0) == (arch == "90" and dtype != "float32" and rows == "64")


@pytest.mark.slow
@pytest.mark.parametrize(
    "configs",
    [
        QUICK,
        pytest.param(
            sorted(TABLE.keys() - set(QUICK)),
            marks=pytest.mark.skipif("CI" not in os.environ, reason="two minutes of compilation: in CI"),
        ),
    ],
    ids=["quick", "all"],
)
def test_a_fresh_compilation_agrees(configs, tmp_path):
    """Compiled in a process in which Triton compiles whatever this one does, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(HERE.parents[2]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.lcc_kernels.shared_prefix.aot", "--select", *configs]
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    version = found.pop("triton")
    assert found.keys() == set(configs)
    for config, needs in found.items():
        assert needs["spilled"] == 0, config
        if version == TRITON:
            remedy = "run python -m tests.lcc_kernels.shared_prefix.aot --write"
            assert needs == TABLE[config], f"{config} changed: {remedy}"
