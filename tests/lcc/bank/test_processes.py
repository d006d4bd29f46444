"""A bank that is killed at work, that two processes write, and that a killed ``lcc bank add`` goes on with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import bank_processes

ROOT = Path(bank_processes.__file__).parents[2]


def test_kills_at_any_moment_and_two_writers():
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", bank_processes.__name__]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
