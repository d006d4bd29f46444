"""Progress where stderr is no terminal, and in a log file."""

from __future__ import annotations

import io
import re
import time

import pytest

from lcc.errors import MemoryFileError
from lcc.utils import log_lines
from lcc.utils.log_lines import LogLines, Stage
from lcc.utils.progress import Reporter

CLOCK = re.compile(r"^\d\d:\d\d:\d\d ", re.M)


def lines(text: str) -> list[str]:
    return [CLOCK.sub("", line) for line in text.splitlines()]


def test_a_line_when_a_stage_begins_and_when_it_is_done(capsys):
    with Reporter() as reporter:
        reporter.start("compiling", 3)
        for step in (1, 2, 3):
            reporter.step(step, 0.5, 0.25)
        reporter.count("certifying", 1, 2)
    written = capsys.readouterr().err
    assert len(CLOCK.findall(written)) == 3
    begun, done, next_stage = lines(written)
    assert begun == "compiling 0/3"
    assert done == "compiling 3/3 · loss 0.5000 · held-out KL 0.2500"
    assert next_stage.startswith("certifying 1/2")


def test_lines_say_which_document(capsys):
    with Reporter() as reporter:
        reporter.document("a\x1b.txt", 0, 2)
        reporter.start("compiling", 2)
        reporter.document("b.txt", 1, 2)
    first, inside, second = lines(capsys.readouterr().err)
    assert first == r"documents 0/2 a\x1b.txt"
    assert inside == r"documents 0/2 a\x1b.txt · compiling 0/2"
    assert second.startswith("documents 1/2 b.txt")


def test_lines_come_while_nothing_moves():
    stream = io.StringIO()
    with LogLines(stream, every=0.05) as written:
        written.show({"asking": Stage(0).at(1, 9)}, "asking")
        deadline = time.monotonic() + 10
        while len(stream.getvalue().splitlines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {line.partition(" · ")[0] for line in lines(stream.getvalue())} == {"asking 1/9"}
    assert len(lines(stream.getvalue())) >= 3


def test_few_lines_while_much_moves():
    stream = io.StringIO()
    with LogLines(stream, every=1000) as written:
        for done in range(99):
            written.show({"asking": Stage(0).at(done, 100)}, "asking")
    assert lines(stream.getvalue()) == ["asking 0/100"]


def test_time_left_goes_by_what_was_done_here(monkeypatch):
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: 130.0)
    stage = Stage(first=10, began=100.0)
    assert stage.at(10, 40).seconds_left is None
    assert stage.at(20, 40).seconds_left == 60
    assert stage.at(40, 40).seconds_left is None


def test_a_log_file_is_appended_to_and_stderr_may_stay_silent(tmp_path, capsys):
    path = tmp_path / "compile.log"
    for _ in range(2):
        with Reporter(False, path) as reporter:
            reporter.start("compiling", 1)
    assert lines(path.read_text()) == ["compiling 0/1"] * 2
    assert not capsys.readouterr().err


def test_a_log_file_that_cannot_be_written(tmp_path):
    with pytest.raises(MemoryFileError, match="cannot write the log file"), Reporter(False, tmp_path):
        pass
