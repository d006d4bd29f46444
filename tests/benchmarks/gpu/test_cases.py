"""Cases: all are built without a GPU, and those that judge find what is wrong."""

from __future__ import annotations

from math import inf, nan
from types import SimpleNamespace

import pytest
import torch

import lcc_kernels as lk
from benchmarks.gpu import correctness, correctness_rows, tiles
from benchmarks.gpu.case import FULL, TINY, relative_error, verdict
from benchmarks.gpu.steps import STEPS
from lcc_kernels.tiles import Tile


@pytest.mark.parametrize("scale", [FULL, TINY], ids=["full", "tiny"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_has_cases_of_different_names(step, scale):
    names = [case.name for case in step.cases(scale)]
    assert names
    assert len(set(names)) == len(names)


def tiny_case(module, name):
    return next(case for case in module.cases(TINY) if case.name == name)


@pytest.mark.parametrize(("change", "passed"), [(1.0, True), (1.01, False), (nan, False)])
def test_an_attention_that_is_off_does_not_pass(monkeypatch, change, passed):
    attention = lk.bottleneck_attention

    def off(*arguments, backend):
        return attention(*arguments, backend=backend) * (change if backend == "torch" else 1.0)

    monkeypatch.setattr(lk, "bottleneck_attention", off)
    row = tiny_case(correctness, "bottleneck torch step hd64 fp16").measure()
    assert row["passed"] == passed
    assert set(row["errors"]) == {"out", "q", "k", "v"}


@pytest.mark.parametrize(("swallowed", "passed"), [(False, True), (True, False)])
def test_a_loss_that_swallows_nan_does_not_pass(monkeypatch, swallowed, passed):
    loss = lk.linear_kl

    def swallowing(*arguments, **how):
        return loss(*arguments, **how).nan_to_num()

    if swallowed:
        monkeypatch.setattr(lk, "linear_kl", swallowing)
    (case,) = [case for case in correctness_rows.nan_cases(TINY) if case.name == "nan linear_kl torch forward"]
    assert case.measure()["passed"] == passed


def test_a_merge_that_changes_its_bits_does_not_pass(monkeypatch):
    attend, launches = lk.shared_prefix_attention, []

    def wavering(*arguments, backend):
        launches.append(backend)
        return attend(*arguments, backend=backend) * (1 + 1e-3 * (len(launches) == 3))

    case = tiny_case(correctness_rows, "merge torch")
    assert case.measure()["passed"]
    monkeypatch.setattr(lk, "shared_prefix_attention", wavering)
    row = case.measure()
    assert (row["other_bits"], row["passed"]) == (1, False)


def test_a_slot_that_is_missed_does_not_pass(monkeypatch):
    attach = lk.attach_kv

    def missing(backend, slots, **arguments):
        attach(backend=backend, slots=slots, **arguments)
        if backend == "torch":
            arguments["key_cache"][0][..., int(slots[0]), :] = 7.0

    case = tiny_case(correctness_rows, "attach torch same")
    assert case.measure()["passed"]
    monkeypatch.setattr(lk, "attach_kv", missing)
    assert not case.measure()["passed"]


@pytest.mark.parametrize(("error", "passed"), [(0.5, True), (1.5, False), (inf, False), (nan, False)])
def test_nan_is_the_worst_error(error, passed):
    row = verdict({"small": 0.1, "other": error}, 1.0)
    assert row["passed"] == passed
    assert row["error"] == pytest.approx(error, nan_ok=True)


def test_an_error_is_relative_to_what_is_wanted():
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)


def test_other_tiles_reach_the_kernels_and_leave_them():
    pytest.importorskip("triton")
    from lcc_kernels.bottleneck import triton_kernel

    chosen = triton_kernel.tiles(90, 128, torch.bfloat16)
    wanted = tiles.Candidate("grad_q", 64, 32, 1).in_place(chosen)
    assert (wanted.grad_q, wanted.forward) == (Tile(64, 32, chosen.grad_q.warps, 1), chosen.forward)
    with tiles._replaced(wanted):
        assert triton_kernel.tiles(90, 128, torch.bfloat16) == wanted
    assert triton_kernel.tiles(90, 128, torch.bfloat16) == chosen


def test_tiles_that_nobody_asks_for_are_not_measured(monkeypatch):
    monkeypatch.setattr(tiles, "sys", SimpleNamespace(modules={}))
    with pytest.raises(LookupError, match="calls tiles"), tiles._replaced(tiles.tiles(90, 128, torch.bfloat16)):
        pass
