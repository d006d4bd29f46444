"""Rows of a run: what is written when, what a second call measures, and what ends a process."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import rows
from benchmarks.gpu.case import TINY, Scale

from .step_process import BEHAVIOURS, made_up


def written(folder):
    return {row["case"]: row for row in rows.sweep(folder).rows}


def test_a_case_that_fails_or_is_refused_leaves_a_row_and_the_others_are_measured(tmp_path, capsys):
    assert rows.measure_missing(made_up("one", "fail", "refuse", "two"), TINY, tmp_path)
    found = written(tmp_path)
    assert found["one"]["seconds"] == found["two"]["seconds"] == 1.0
    assert found["fail"]["failed"] == "ZeroDivisionError: a bug"
    assert found["refuse"]["refused"] == "not here"
    assert "failed" not in found["refuse"]
    assert all(row["torch"] == torch.__version__ and row["commit"] for row in found.values())
    assert [name for name, row in found.items() if rows.is_wrong(row)] == ["fail"]
    assert "made_up: one: seconds 1" in capsys.readouterr().out


def test_a_row_is_in_the_file_while_its_case_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(BEHAVIOURS, "look", lambda: {"seen": written(tmp_path)["look"]["failed"]})
    rows.measure_missing(made_up("look"), TINY, tmp_path)
    assert written(tmp_path)["look"]["seen"] == rows.UNFINISHED


def test_a_second_call_measures_what_is_missing_and_what_failed(tmp_path):
    rows.measure_missing(made_up("one", "fail"), TINY, tmp_path)
    table = rows.sweep(tmp_path)
    table.replace(("made_up", "one"), [written(tmp_path)["one"] | {"seconds": 7.0}])
    table.add({"step": "another", "case": "fail", "failed": "it did"})
    rows.forget_failures(tmp_path, [made_up()])
    assert sorted(table.key(row) for row in table.rows) == [("another", "fail"), ("made_up", "one")]
    rows.measure_missing(made_up("one", "two"), TINY, tmp_path)
    assert written(tmp_path)["one"]["seconds"] == 7.0
    assert written(tmp_path)["two"]["seconds"] == 1.0


def test_a_gpu_that_a_case_has_broken_ends_the_process(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "cuda", SimpleNamespace(synchronize=broken, is_available=lambda: False))
    assert not rows.measure_missing(made_up("one", "two"), Scale("cuda", True), tmp_path)
    assert list(written(tmp_path)) == ["one"]


def test_a_process_whose_parent_is_gone_stops(tmp_path, monkeypatch):
    parents = iter([100, 100, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    rows.measure_missing(made_up("one", "two", "three"), TINY, tmp_path)
    assert list(written(tmp_path)) == ["one"]


@pytest.mark.parametrize(
    ("row", "wrong"), [({}, False), ({"passed": True}, False), ({"passed": False}, True), ({"failed": ""}, True)]
)
def test_what_is_wrong(row, wrong):
    assert rows.is_wrong(row) == wrong
