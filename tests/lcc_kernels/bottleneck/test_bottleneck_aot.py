"""Every kernel compiles for sm_80 and sm_90 without a spilled register; resources.json says what each one takes."""

import json
import os
from pathlib import Path

import pytest

from tests.lcc_kernels.other_process import run_compiled

pytest.importorskip("triton")

RECORDED = json.loads(Path(__file__).with_name("resources.json").read_text())
TABLE = {config: needs for config, needs in RECORDED.items() if config != "triton"}
SHARED_MEMORY = {"80": 99 * 1024, "90": 227 * 1024}
QUICK = ["80:64:bfloat16", "90:128:bfloat16"]


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
    for config, kernels in run_compiled("tests.lcc_kernels.bottleneck.aot", RECORDED, configs, cache).items():
        assert all(kernel["spilled"] == 0 for kernel in kernels.values()), config


@pytest.mark.slow
def test_a_fresh_compilation_agrees(tmp_path):
    check(QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("CI" not in os.environ, reason="a minute of compilation: in CI")
def test_every_fresh_compilation_agrees(tmp_path):
    check([config for config in TABLE if config not in QUICK], tmp_path)
