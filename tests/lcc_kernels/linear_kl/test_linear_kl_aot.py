"""The row kernel compiles for sm_80, sm_90 and sm_100 to loops that are short and never wait: see resources.json."""

import json
from pathlib import Path

import pytest

from tests.lcc_kernels.other_process import quick_and_rest, run_compiled

pytest.importorskip("triton")

RECORDED = json.loads(Path(__file__).with_name("resources.json").read_text())
TABLE = {config: needs for config, needs in RECORDED.items() if config != "triton"}
QUICK = ["80:fp32:jsd:plain", "90:bf16:forward:plain", "100:bf16:mse:plain"]
SWEEPS = {"forward": 2, "reverse": 2, "jsd": 3, "mse": 1}


def check(config, needs):
    """Nothing spilled; loops without barriers, with accesses of 16 bytes, the most used ones of few instructions."""
    _, dtype, kind, shape = config.split(":")
    assert needs["spilled"] == needs["barriers"] == needs["narrow"] == 0
    assert len(needs["instructions"]) >= SWEEPS[kind]
    if dtype != "fp32" and (kind, shape) == ("forward", "plain"):
        assert sum(needs["instructions"]) <= 30, "instructions a logit pair, of both sweeps"


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    check(config, TABLE[config])


@pytest.mark.slow
@quick_and_rest(QUICK, sorted(TABLE.keys() - set(QUICK)), "two minutes")
def test_a_fresh_compilation_agrees(configs, tmp_path):
    for config, needs in run_compiled("tests.lcc_kernels.linear_kl.aot", RECORDED, configs, tmp_path).items():
        check(config, needs)
