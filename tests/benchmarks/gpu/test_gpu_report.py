"""The page of a run: of rows that tiny cases leave on a CPU, and of rows that are made up."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks.gpu import report
from benchmarks.gpu.case import TINY
from benchmarks.gpu.rows import FILE, measure_missing
from benchmarks.gpu.steps import named
from benchmarks.report import main

WHERE = {"device": "some GPU", "torch": "2.11", "commit": "abc1234"}


def row(step, case, **figures):
    return {"step": step, "case": case, **figures, **WHERE}


ROWS = [
    row("machine", "product", seconds=0.0015, tflops=500.0),
    row("correctness", "one", passed=True, error=0.001, errors={"q": 0.001}),
    row("correctness", "two", passed=False, error=0.5, errors={"q": 0.5}),
    row("attention", "8192 triton", fwd_seconds=0.002, fwd_tflops=250.0, fwd_peak_bytes=3 * 2**20),
    row("attention", "8192 flex", refused="not | here"),
    row("memory_bound", "attach", seconds=1e-5, share_of_copy=0.75, bytes_per_second=3e12),
    row("training", "step", failed="out of memory"),
]


def test_a_page_says_what_is_wrong_and_how_near_each_case_came():
    page = report.markdown("run", ROWS)
    lines = page.splitlines()
    assert "7 cases; 1 of 2 that were judged are right." in lines
    assert "- **correctness: two**: wrong: see its row" in lines
    assert "- **training: step**: out of memory" in lines
    assert "| 8192 triton | 2 | 250 (50%) | 3 |" in lines
    assert "| case | fwd ms | fwd TFLOP/s | fwd peak MiB |" in lines
    assert "| attach | 0.01 | 75% | 3000 |" in lines
    assert "| two | no | 0.5 |" in lines
    assert "- 1 × not | here" in lines
    assert "- device some GPU, torch 2.11, commit abc1234" in lines
    assert "## training" not in lines  # nothing of it was measured


def test_cases_with_other_columns_have_a_table_of_their_own():
    page = report.markdown("run", [row("machine", "a", seconds=1.0), row("machine", "b", tflops=1.0)])
    assert page.count("| --- | --- |") == 2


def test_bars_are_shares_of_what_the_machine_reached():
    assert report._shares(ROWS[3], 500.0) == [("8192 triton fwd", 0.5)]
    assert report._shares(ROWS[5], None) == [("attach", 0.75)]
    assert report._shares(ROWS[3], None) == report._shares(ROWS[0], 500.0) == []


def test_a_folder_of_a_tiny_run_becomes_a_page(tmp_path, capsys):
    for step in named(["machine", "memory_bound"]):
        assert measure_missing(step, TINY, tmp_path / "run")
    main([str(tmp_path / "run"), "-o", str(tmp_path / "page")])
    page = (tmp_path / "page/report.md").read_text()
    assert page.startswith("# Ten minutes on a GPU (run)\n")
    assert "| attach tiny torch |" in page
    assert "## Not run" in page
    assert (tmp_path / "page/report.png").read_bytes().startswith(b"\x89PNG")
    main([str(tmp_path / "run" / FILE), "-o", str(tmp_path / "again")])
    assert (tmp_path / "again/report.md").read_text().splitlines()[1:] == page.splitlines()[1:]


@pytest.mark.parametrize("content", [None, {"rows": []}])
def test_a_run_without_rows_has_no_page(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main([str(tmp_path), "-o", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err
