"""Every kernel compiles for sm_80, sm_90 and sm_100 without a spilled register; resources.json says what each takes."""

import json
import os
from pathlib import Path

import pytest

from tests.lcc_kernels.other_process import run_compiled

pytest.importorskip("triton")

RECORDED = json.loads(Path(__file__).with_name("resources.json").read_text())
TABLE = {config: needs for config, needs in RECORDED.items() if config != "triton"}
SHARED_MEMORY = {"80": 99 * 1024, "90": 227 * 1024, "100": 227 * 1024}
QUICK = ["80:64:bfloat16", "90:128:bfloat16", "90:64:float32"]


def assert_sound(config, kernels):
    """No register is spilled, no stride multiplied in 32 bits, no float32 product rounded to tf32."""
    for name, kernel in kernels.items():
        assert kernel["spilled"] == 0, (config, name)
        assert kernel["narrow_strides"] == 0, (config, name)
        if config.endswith("float32"):
            assert kernel["precision"] == (["tf32x3"] if name != "_reduce" else []), (config, name)


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    arch, head_dim, dtype = config.split(":")
    assert_sound(config, TABLE[config])
    for name, kernel in TABLE[config].items():
        assert kernel["shared"] <= SHARED_MEMORY[arch], name
        products_fit_a_group = arch != "80" and dtype != "float32" and int(head_dim) <= 128
        if products_fit_a_group and name != "_reduce":
            assert kernel["group_products"] > 0, name


def check(configs, cache):
    for config, kernels in run_compiled("tests.lcc_kernels.bottleneck.aot", RECORDED, configs, cache).items():
        assert_sound(config, kernels)


@pytest.mark.slow
def test_a_fresh_compilation_agrees(tmp_path):
    check(QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ, reason="a minute of compilation: in CI")
def test_every_fresh_compilation_agrees(tmp_path):
    check([config for config in TABLE if config not in QUICK], tmp_path)
