"""The README's exit codes, over every command; 6 is in test_auto_ratio.py."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading as load
from lcc.cli.boundary import boundary
from lcc.cli.options import print_json
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.utils.terminal import Terminal
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

runner = CliRunner()
PYTHON = Path(lcc.__file__).parents[1]
SMALL = "--ratio 8 --steps 1 --set batch=2 --set self_study_questions=4 --set max_response_tokens=8 --no-certify"
# A command that works; {name} is a file of the folder that ``files`` makes.
GOOD = {
    "ask": "ask {memory} Where? --max-new-tokens 2 --model {model}",
    "chat": "chat {memory} --model {model}",
    "compile": f"compile {{text}} -o {{new}} --model {{model}} {SMALL}",
    "demo": "demo --steps 1 --json",
    "eval": "eval {rows} -o {folder} --general-count 0 --methods no_text --model {model}",
    "export": "export {memory} --to safetensors -o {folder} --model {model}",
    "inspect": "inspect {memory}",
    "quantize": "quantize {memory} -o {new} --answers 1 --model {model}",
    "update": f"update {{memory}} {{text}} -o {{new}} --model {{model}} {SMALL}",
    "verify": "verify {memory} --model {model}",
}
# Commands that are servers or ask one: tests/lcc/serving runs them.
SERVING = {"certify", "serve"}
UNUSABLE = {
    "certify": [
        "certify {memory} --model {model}",
        "certify {memory} --engine e --count 0 --model {model}",
        "certify {memory} --engine e --url http://127.0.0.1:9/v1 --model {model}",
    ],
    "serve": [
        "serve",
        "serve {absent} --model {model}",
        "serve {text} --model {model}",
        "serve . --port 70000",
        "serve . --engine soup",
        "serve . --engine llama-cpp --model {model}",
        "serve . --engine llama-cpp --states {absent} --model {model}",
        "serve . --engine llama-cpp --states . --url http://127.0.0.1:9 --model {model}",
    ],
    "ask": [
        "ask {memory} Where? --model {absent}",
        "ask {memory} Where? --model {text}",
        "ask {memory}",
        "ask {memory} '' --model {model}",
    ],
    "chat": ["chat {memory} --model {absent}", "chat {memory} --model ''", "chat"],
    "compile": [
        "compile {absent} -o {new} --model {model}",
        "compile {binary} -o {new} --model {model}",
        "compile {text} -o {new} --model {absent}",
        "compile {text} --model {model}",
        "compile {text} -o {new} --model {model} --set rank=4.5",
        "compile {text} -o {new} --model {model} --set rank",
        "compile {text} -o {new} --model {model} --set rnak=4",
        "compile {text} -o {new} --model {model} --set checkpoint=c",
        "compile {text} -o {new} --model {model} --set recipe=fast",
        "compile {text} -o {new} --model {model} --steps 3 --set steps=4",
        "compile {text} -o {new} --model {model} --ratio 0.5",
        "compile {text} -o {new} --model {model} --ratio many",
        "compile {text} -o {new} --model {model} --seed 99999999999999999999999",
        "compile {text} -o {new} --model {model} --queries {deep}",
        "compile {text} -o {new} --model {model} --questions {deep}",
        "compile {text} --dry-run --model {model} --set ratio=auto",
        "compile {text} -o {new} --model {model} --real-steps",
    ],
    "demo": ["demo --set seed=abc", "demo --set text=hi", "demo --ratio nan", "demo --seed -99999999999999999999"],
    "eval": [
        "eval {rows} -o {folder} --set recipe=fast",
        "eval {rows} -o {folder} --set rank=x",
        "eval {deep} -o {folder} --model {model}",
        "eval {rows} -o {folder} --methods soup --model {model}",
        "eval {rows} -o {folder} --general-count -1 --model {model}",
        "eval {rows} -o {folder} --metric judge --model {model}",
        "eval {rows} -o {folder} --judge judge.example",
        "eval {rows} -o {folder} --judge https://judge.example/v1 --judge-key-file {binary}",
    ],
    "export": ["export {memory} --to gguf -o {folder} --model {model}", "export {memory} -o {folder}"],
    "inspect": ["inspect", "inspect {memory} {memory}"],
    "quantize": [
        "quantize {memory} -o {new} --dtype int4 --model {model}",
        "quantize {memory} -o {new} --answers 0 --model {model}",
        "quantize {memory} -o {new} --queries {deep} --model {model}",
    ],
    "update": [
        "update {memory} {absent} -o {new} --model {model}",
        "update {memory} {binary} -o {new} --model {model}",
        "update {memory} {text} --model {model}",
        "update {memory} {text} -o {new} --model {absent}",
        "update {memory} {text} -o {new} --model {model} --set rnak=4",
        "update {memory} {text} -o {new} --model {model} --set start=m",
        "update {memory} {text} -o {new} --model {model} --set keep_prefix=no",
        "update {memory} {text} -o {new} --model {model} --compiler attention_matching",
        "update {memory} {text} -o {new} --model {model} --ratio 0.5",
        "update {memory} {text} -o {new} --model {model} --set ratio=auto",
        "update {memory} {text} -o {new} --model {model} --constant --ratio 4",
    ],
    "verify": ["verify {memory} --model {absent}", "verify {memory} --models {model}"],
}
OTHER_MODEL = ["certify {memory} --engine e", "ask {memory} Where?", "chat {memory}", "verify {memory}",
               "quantize {memory} -o {new}", "update {memory} {text} -o {new}",
               "export {memory} --to cartridge -o {folder}"]  # fmt: skip
UNREADABLE = [
    *(f"{command} {{{file}}}{more}"
      for command, more in (("ask", " Where?"), ("chat", ""), ("inspect", ""), ("verify", ""),
                            ("quantize", " -o {new}"), ("update", " {text} -o {new}"),
                            ("export", " --to safetensors -o {folder}"))
      for file in ("absent", "text", "model", "torn")),
    "compile {text} -o {absent}/new --model {model}",
    "quantize {memory} -o {absent}/new --model {model}",
    "update {memory} {text} -o {absent}/new --model {model}",
    "update {memory} {text} -o {memory} --model {model}",
    "export {memory} --to safetensors -o {text}/below --model {model}",
    "eval {rows} -o {text}/below --general-count 0 --methods no_text --model {model}",
]  # fmt: skip


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
    replace(memory, questions=("Where does Mara live?",)).save(folder / "memory")
    (folder / "torn").write_bytes((folder / "memory").read_bytes()[:-1])
    (folder / "text").write_text(text)
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    (folder / "deep").write_text("[" * 100_000)
    (folder / "rows").write_text('{"context": "Mara lives in Tarn.", "question": "Where?", "answer": "Tarn"}\n')
    return folder


@pytest.fixture
def lcc_command(made, tmp_path):
    def run(command: str, **options: object):
        names = ("memory", "torn", "text", "binary", "deep", "rows", "model")
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
