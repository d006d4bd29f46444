"""Streams that take nothing, or that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lcc
from lcc.cli.boundary import boundary
from lcc.cli.options import print_json
from lcc.utils.terminal import Terminal

PYTHON = Path(lcc.__file__).parents[1]


@pytest.fixture
def unread():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        yield stream


@pytest.mark.parametrize(
    "write", [lambda: print("text"), lambda: Terminal().print("text"), lambda: print_json({"a": 1})]
)
def test_a_reader_who_has_gone(write, unread, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(SystemExit) as ended, boundary():
        write()
    assert ended.value.code == 141
    assert capfd.readouterr().err == ""


def test_a_full_disk(monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended, boundary():
            print("text")
        assert ended.value.code == 4
    assert "standard output: No space left" in capfd.readouterr().err


def test_closed_streams():
    command = f"{sys.executable} -m lcc --version"
    for closed, printed in ((">&-", ""), ("<&-", "lcc "), ("2>&-", "lcc ")):
        done = subprocess.run(
            ["bash", "-c", f"{command} {closed}"], capture_output=True, text=True, cwd=PYTHON, timeout=60, check=True
        )
        assert done.stdout.startswith(printed)
        assert not done.stderr
