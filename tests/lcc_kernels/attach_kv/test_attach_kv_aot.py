"""The kernel compiles for sm_80 and sm_90 with no spilled register and with 16-byte accesses: see resources.json."""

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
QUICK = ["80:96:fp32:fp8:plain", "90:128:bf16:same:plain", "90:128:bf16:i8:interleaved"]


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    assert TABLE[config]["spilled"] == 0
    assert TABLE[config]["wide"] >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "configs",
    [
        QUICK,
        pytest.param(
            sorted(TABLE.keys() - set(QUICK))[::3],
            marks=pytest.mark.skipif("CI" not in os.environ, reason="half a minute of compilation: in CI"),
        ),
    ],
    ids=["quick", "every third"],
)
def test_a_fresh_compilation_agrees(configs, tmp_path):
    """Compiled in a process in which Triton compiles whatever this one does, with an empty cache."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(HERE.parents[2]), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.lcc_kernels.attach_kv.aot", "--select", *configs]
    run = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout)
    version = found.pop("triton")
    assert found.keys() == set(configs)
    for config, needs in found.items():
        assert needs["spilled"] == 0, config
        if version == TRITON:
            assert needs == TABLE[config], f"{config} changed: run python -m tests.lcc_kernels.attach_kv.aot --write"
