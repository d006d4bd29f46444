"""``lcc leaks`` of a memory that is its text: what it prints, what it writes, and exit code 7."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.memory.keys import write_key
from lcc.synthetic.people import document
from lcc.utils.hashing import text_digest
from tests.support.plain_memories import plain_memory

runner = CliRunner()
DOCUMENT = document(random.Random(3), people=4, attributes=4)


@pytest.fixture
def files(embedded, monkeypatch, tmp_path):
    memory, _ = plain_memory(*embedded, DOCUMENT.text, monkeypatch)
    replace(memory, source_sha256=text_digest(DOCUMENT.text)).save(tmp_path / "memory")
    (tmp_path / "text").write_text(DOCUMENT.text)
    return tmp_path


@pytest.fixture
def leaks(files):
    def run(*words: str):
        given = ["leaks", str(files / "memory"), "--text", str(files / "text"), "--attempts", "1", *words]
        return runner.invoke(cli.app, given, env={"COLUMNS": "120"})

    return run


def test_more_than_is_allowed(leaks, files):
    result = leaks("--max-recited", "0.5", "--canary", DOCUMENT.facts[0].value, "--mark", DOCUMENT.facts[1].sentence)
    assert result.exit_code == 7, result.output
    assert "error: the memory recites" in result.stderr
    # The table all the same, a line for everything that was asked for.
    for line in (
        "asked to repeat",
        "longest run",
        f"exposure of {DOCUMENT.facts[0].value}",
        "passages (1,",
        "recited: ",
    ):
        assert line in result.stdout
    assert lcc.Memory.load(files / "memory").leaks is None


def test_json_alone_on_stdout(leaks, files):
    result = leaks("--max-recited", "0.5", "--json", "--write")
    assert result.exit_code == 7
    measured = json.loads(result.stdout)
    assert measured["recited"] > 0.5
    # What was measured is kept, whatever is allowed.
    assert measured.pop("path") == str(files / "memory")
    assert measured.pop("signature_dropped") is False
    assert lcc.Memory.load(files / "memory").leaks == measured


def test_what_is_written_drops_the_signature(leaks, files, tmp_path):
    private, public = write_key(tmp_path / "key")
    lcc.sign(files / "memory", private)
    assert "signature" not in leaks().stdout
    assert lcc.Memory.load(files / "memory", trusted=[public])
    assert "its signature is gone: sign it again" in " ".join(leaks("--write").stdout.split())
    with pytest.raises(lcc.MemoryFileError, match="not signed"):
        lcc.Memory.load(files / "memory", trusted=[public])
    lcc.sign(files / "memory", private)
    assert json.loads(leaks("--write", "--json").stdout)["signature_dropped"] is True


def test_no_more_than_is_allowed(leaks):
    assert leaks("--max-recited", "1").exit_code == 0


def test_a_memory_that_is_replaced_meanwhile(leaks, files, monkeypatch):
    monkeypatch.setattr(lcc.Memory, "digest", property(lambda memory: str(id(memory))))
    result = leaks("--write")
    assert result.exit_code == 4
    assert "was replaced meanwhile" in result.stderr
    assert lcc.Memory.load(files / "memory").leaks is None
