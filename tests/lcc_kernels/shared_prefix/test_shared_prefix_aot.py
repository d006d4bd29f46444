"""The kernel compiles without spilled registers and with asynchronous copies: see resources.json."""

import json
from pathlib import Path

import pytest

from lcc_kernels.dispatch import interpreting
from tests.lcc_kernels.other_process import quick_and_rest, run_compiled

pytest.importorskip("triton")

RECORDED = json.loads(Path(__file__).with_name("resources.json").read_text())
TABLE = {config: needs for config, needs in RECORDED.items() if config != "triton"}
SHARED_MEMORY = {"80": 99 * 1024, "90": 227 * 1024, "100": 227 * 1024}
QUICK = ["80:96:float32:16", "90:128:bfloat16:64", "90:128:bfloat16:32:every", "100:128:bfloat16:64:whole"]


def spill_allowed(config):
    """Bytes of a thread: nothing in the loops, and with every option at once four registers around them."""
    return 16 if config.endswith(":every") else 0


@pytest.mark.parametrize("config", TABLE)
def test_recorded_resources(config):
    arch, _, dtype, rows = config.split(":")[:4]
    assert TABLE[config]["spilled"] <= spill_allowed(config)
    assert TABLE[config]["shared"] <= SHARED_MEMORY[arch]
    assert TABLE[config]["copies"] > 0, "the keys to come are not loaded while those at hand are multiplied"
    assert (TABLE[config]["warpgroup"] > 0) == (arch != "80" and dtype != "float32" and int(rows) >= 64)


@pytest.mark.slow
@quick_and_rest(QUICK, sorted(TABLE.keys() - set(QUICK)), "two minutes")
def test_a_fresh_compilation_agrees(configs, tmp_path):
    found = run_compiled("tests.lcc_kernels.shared_prefix.aot", RECORDED, configs, tmp_path)
    assert all(needs["spilled"] <= spill_allowed(config) for config, needs in found.items())


@pytest.mark.slow
@pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
def test_all_threads_have_stored_their_sums_before_one_of_them_counts():
    from tests.lcc_kernels.shared_prefix.aot import compiled

    before, counted, _ = compiled("90:128:bfloat16:16").asm["ptx"].partition("atom.global.gpu.acq_rel.add")
    assert counted
    assert "bar.sync" in before[before.rindex("st.global") :]
