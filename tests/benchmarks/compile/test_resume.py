"""Kill -9 at random moments: a resumed compilation gives the uninterrupted memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_is_the_same(processes, tmp_path):
    """A few kills; the twenty of the log are ``python -m benchmarks.compile.resume``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    # One thread: the script forks.
    environment |= {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.compile.resume",
        "--kills",
        "2",
        "--steps",
        "5",
        "--out",
        tmp_path / "rows",
    ]
    subprocess.run([*command, "--processes", str(processes)], env=environment, check=True, stdout=subprocess.DEVNULL)
    (row,) = json.loads((tmp_path / "rows").read_text())["rows"]
    assert row["identical"] == row["finished"] >= 1
    assert sum(row["killed_when"].values()) == 2
