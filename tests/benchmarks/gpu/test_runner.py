"""Steps in processes: a crash, a step that is late, and time that is over."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import rows, runner

from . import step_process
from .step_process import made_up

CASES = ("one", "crash", "two")


@pytest.fixture
def real_processes(monkeypatch, tmp_path):
    """Let the made-up step run in a process that knows it; the calls' exit codes."""
    codes, run_within = [], runner.run_within

    def run(command, seconds):
        codes.append(run_within([sys.executable, "-m", step_process.__name__, str(tmp_path), *CASES], seconds))
        return codes[-1]

    monkeypatch.setattr(runner, "run_within", run)
    return codes


def test_a_crash_costs_its_case_and_a_later_call_measures_it_again(real_processes, tmp_path, monkeypatch):
    step = made_up(*CASES)
    runner.run_steps([step], tmp_path, 600)
    found = {row["case"]: row for row in rows.sweep(tmp_path).rows}
    assert found["crash"]["failed"] == rows.UNFINISHED
    assert found["one"]["seconds"] == found["two"]["seconds"] == 1.0
    assert real_processes == [-11, runner.DONE]
    monkeypatch.setitem(step_process.BEHAVIOURS, "crash", lambda: {"seconds": 2.0})
    rows.forget_failures(tmp_path, [step])
    rows.measure_missing(step, step_process.TINY, tmp_path)
    assert [row.get("failed") for row in rows.sweep(tmp_path).rows] == [None] * 3


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    return now


def test_a_late_step_is_not_begun_again_and_the_next_one_has_what_is_left(clock, monkeypatch, tmp_path, capsys):
    given = []

    def run(command, seconds):
        given.append(seconds)
        rows.sweep(tmp_path).add({"step": "made_up", "case": f"{len(given)}", "failed": rows.UNFINISHED})
        clock[0] += seconds

    monkeypatch.setattr(runner, "run_within", run)
    runner.run_steps([made_up(seconds=seconds) for seconds in (10, 20, 30)], tmp_path, 25)
    assert given == [10, 15]
    said = capsys.readouterr().out.splitlines()
    assert said == ["made_up: its time is over"] * 2 + ["made_up: no time is left"]


def test_a_process_that_crashes_without_a_row_is_not_begun_for_ever(clock, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(runner, "run_within", lambda command, seconds: calls.append(command) or 1)
    runner.run_steps([made_up()], tmp_path, 25)
    assert len(calls) == 1
    assert calls[0][-2:] == ["--measure", "made_up"]


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(99)
"""


def test_what_is_late_is_killed_with_all_that_it_started(tmp_path):
    child = tmp_path / "child"
    assert runner.run_within([sys.executable, "-c", PARENT, str(child)], 5) is None
    deadline = time.monotonic() + 60
    while _runs(int(child.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process is there, and more than a zombie that nobody has waited for."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_passed_on(code):
    assert runner.run_within([sys.executable, "-c", f"raise SystemExit({code})"], 60) == code
