"""Steps in processes of their own: one that is late or crashes takes no other with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .rows import sweep
from .steps import Step

DONE, BROKEN = 0, 3  # exit codes of a process: all cases have rows, or its GPU is beyond use


def run_steps(steps: Sequence[Step], folder: Path, seconds: float, options: Sequence[str] = ()) -> None:
    """Measure what is missing of each step, in ``seconds`` at most altogether.

    Args:
        options: more words of the command line of each process.
    """
    deadline = time.monotonic() + seconds
    for step in steps:
        left = min(step.seconds, deadline - time.monotonic())
        if left > 0:
            _run_step(step, folder, time.monotonic() + left, options)
        else:
            print(f"{step.name}: no time is left", flush=True)


def _run_step(step: Step, folder: Path, deadline: float, options: Sequence[str]) -> None:
    """Start the step's process, and again after a crash as long as each one leaves another row behind."""
    command = [sys.executable, "-m", __package__, "--out", str(folder), "--measure", step.name, *options]
    rows = -1
    while (left := deadline - time.monotonic()) > 0 and len(sweep(folder).rows) > rows:
        rows = len(sweep(folder).rows)
        code = run_within(command, left)
        if code == DONE:
            return
        print(f"{step.name}: " + ("its time is over" if code is None else f"its process ended with {code}"), flush=True)


def run_within(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> int | None:
    """The exit code of a command; None if it was killed, with all that it started, after ``seconds``."""
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
