"""The README's exit codes, over every command; 6 is in test_auto_ratio.py, 7 in test_leaks.py."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading as load
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory import keys, signing
from lcc.memory.keys import write_key
from lcc.utils.hashing import text_digest
from tests.support.commands import GOOD, OTHER_MODEL, SERVING, SMALL, UNREADABLE, UNUSABLE
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

runner = CliRunner()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Files that every command can be given."""
    folder = tmp_path_factory.mktemp("files")
    model, tokenizer = tiny_model("llama"), build_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    text = "Mara lives in the old town of Tarn. Hugo works every day as a baker. The dog of Mara is called Pim."
    with pytest.MonkeyPatch.context() as patch:
        memory = plain_memory(model, tokenizer, text, patch)[0]
    kept = {"questions": ("Where does Mara live?",), "source_sha256": text_digest(text)}
    replace(memory, **kept).save(folder / "memory")
    (folder / "torn").write_bytes((folder / "memory").read_bytes()[:-1])
    (folder / "text").write_text(text)
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    (folder / "deep").write_text("[" * 100_000)
    lcc.Delta.between(lcc.Memory.load(folder / "memory"), lcc.Memory.load(folder / "memory")).save(folder / "delta")
    write_key(folder / "key")
    (folder / "rows").write_text('{"context": "Mara lives in Tarn.", "question": "Where?", "answer": "Tarn"}\n')
    return folder


@pytest.fixture
def lcc_command(made, tmp_path):
    def run(command: str, **options: object):
        names = ("memory", "torn", "text", "binary", "deep", "rows", "model", "delta", "key")
        known = {name: made / name for name in names}
        known |= {name: tmp_path / name for name in ("absent", "new", "folder")}
        words = ["" if word == "''" else word.format(**known) for word in command.split()]
        return runner.invoke(cli.app, words, **options)

    return run


def test_the_tables_have_every_command():
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == set(GOOD) | SERVING
    assert GOOD.keys() | SERVING == UNUSABLE.keys()


@pytest.mark.parametrize("name", sorted(set(GOOD) - {"demo"}))
def test_done(name, lcc_command):
    result = lcc_command(GOOD[name], input="Where?\n\n")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", [command for commands in UNUSABLE.values() for command in commands])
def test_unusable_input(command, lcc_command):
    refused(lcc_command(command), 2)


@pytest.mark.parametrize("command", OTHER_MODEL)
def test_the_memory_of_another_model(command, lcc_command):
    refused(lcc_command(command), 3)


@pytest.mark.parametrize("command", UNREADABLE)
def test_files_that_cannot_be_read_or_written(command, lcc_command):
    refused(lcc_command(command), 4)


def refused(result, code: int) -> None:
    """It ended with ``code`` and said why, on stderr alone."""
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert re.search(r"^error: .{9}|Usage: ", result.stderr, re.MULTILINE)
    assert not result.stdout


def test_one_of_several_documents_fails(lcc_command, tmp_path):
    (tmp_path / "folder").mkdir()
    result = lcc_command(f"compile {{text}} {{binary}} -o {{folder}} --model {{model}} --json {SMALL}")
    assert result.exit_code == 1, result.output
    assert [each["status"] for each in json.loads(result.stdout)["documents"]] == ["compiled", "failed"]


def test_a_loss_that_diverges(lcc_command, monkeypatch):
    from lcc.training import trainer as optimize

    real = optimize.step_loss
    monkeypatch.setattr(optimize, "step_loss", lambda *given: real(*given) * float("nan"))
    refused(lcc_command(GOOD["compile"]), 5)


@pytest.mark.parametrize("command", GOOD.values(), ids=GOOD)
def test_an_interrupt(command, lcc_command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "load_model", interrupt)
    monkeypatch.setattr(lcc.Memory, "load", interrupt)
    monkeypatch.setattr(signing, "sign", interrupt)
    monkeypatch.setattr(keys, "write_key", interrupt)
    result = lcc_command(command)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (MemoryError(), 2, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "out of memory"),
        (RecursionError(), 2, "nested too deeply"),
        (BrokenPipeError(), 141, ""),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 4, "standard output: No space left"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "\x1b[2Jfile"), 4, r"\x1b[2Jfile: Permission denied"),
    ],
)  # fmt: skip
def test_what_can_happen_in_any_command(failure, code, words, lcc_command, monkeypatch):
    monkeypatch.setattr(lcc.Memory, "load", lambda *_: (_ for _ in ()).throw(failure))
    result = lcc_command("inspect {memory}")
    assert result.exit_code == code
    assert words in result.stderr
    assert bool(words) == bool(result.stderr)


@pytest.mark.parametrize("bug", [ZeroDivisionError(), RuntimeError("size mismatch"), AttributeError()])
def test_a_bug_is_no_exit_code(bug, lcc_command, monkeypatch):
    monkeypatch.setattr(lcc.Memory, "load", lambda *_: (_ for _ in ()).throw(bug))
    assert lcc_command("inspect {memory}").exception is bug
