"""The kernel compiles for sm_80 to sm_100 with no spilled register and with 16-byte accesses: see resources.json."""

import json
from pathlib import Path

import pytest

from tests.lcc_kernels.other_process import quick_and_rest, run_compiled

pytest.importorskip("triton")

RECORDED = json.loads(Path(__file__).with_name("resources.json").read_text())
TABLE = {config: needs for config, needs in RECORDED.items() if config != "triton"}
QUICK = ["80:96:fp32:fp8:plain", "90:128:bf16:same:plain", "90:128:bf16:i8:interleaved"]


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    assert TABLE[config]["spilled"] == 0
    assert TABLE[config]["wide"] >= 8


@pytest.mark.slow
@quick_and_rest(QUICK, sorted(TABLE.keys() - set(QUICK))[::3], "half a minute")
def test_a_fresh_compilation_agrees(configs, tmp_path):
    found = run_compiled("tests.lcc_kernels.attach_kv.aot", RECORDED, configs, tmp_path)
    assert all(needs["spilled"] == 0 for needs in found.values())
