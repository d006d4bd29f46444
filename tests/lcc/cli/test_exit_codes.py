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
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

runner = CliRunner()
SMALL = "--ratio 8 --steps 1 --set batch=2 --set self_study_questions=4 --set max_response_tokens=8 --no-certify"
# A command that works; {name} is a file of the folder that ``files`` makes.
GOOD = {
    "apply": "apply {memory} {delta} -o {new}",
    "ask": "ask {memory} Where? --max-new-tokens 2 --model {model}",
    "chat": "chat {memory} --model {model}",
    "compile": f"compile {{text}} -o {{new}} --model {{model}} {SMALL}",
    "delta": "delta {memory} {memory} -o {new}",
    "demo": "demo --steps 1 --json",
    "eval": "eval {rows} -o {folder} --general-count 0 --methods no_text --model {model}",
    "export": "export {memory} --to safetensors -o {folder} --model {model}",
    "inspect": "inspect {memory}",
    "leaks": "leaks {memory} --text {text} --attempts 1 --max-recited 1 --model {model}",
    "keygen": "keygen {new}",
    "log": "log {memory}",
    "quantize": "quantize {memory} -o {new} --answers 1 --model {model}",
    "sign": "sign {memory} --key {key} --detached",
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
    "apply": ["apply {memory} {delta}", "apply {memory} {delta} -o {new} --key {key}"],
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
        "compile {text} -o {new} --model {model} --redact nobody",
        "compile {text} -o {new} --model {model} --redact ''",
        "compile {text} -o {new} --model {model} --max-bytes many",
        "compile {text} -o {new} --model {model} --max-bytes 100",
        "compile {text} -o {new} --model {model} --max-bytes 1MB --ratio 8",
        "compile {text} -o {new} --model {model} --max-bytes 1MB --set ratio=8",
        "compile {text} -o {new} --model {model} --max-bytes 1MB --budget 1m",
        "compile {text} --dry-run --model {model} --max-bytes 1MB",
    ],
    "delta": ["delta {memory} {memory}", "delta {memory} -o {new}"],
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
    "leaks": [
        "leaks {memory} --model {model}",
        "leaks {memory} --text {absent} --model {model}",
        "leaks {memory} --text {text} --mark nobody --model {model}",
        "leaks {memory} --text {text} --canary nobody --model {model}",
        "leaks {memory} --text {text} --redacted {binary} --model {model}",
        "leaks {memory} --text {text} --max-recited nan --model {model}",
        "leaks {memory} --text {text} --max-recited 20 --model {model}",
    ],
    "keygen": ["keygen", "keygen {new} {new}"],
    "log": ["log", "log {memory} --model {model}"],
    "quantize": [
        "quantize {memory} -o {new} --dtype int3 --model {model}",
        "quantize {memory} -o {new} --answers 0 --model {model}",
        "quantize {memory} -o {new} --queries {deep} --model {model}",
    ],
    "sign": [
        "sign {memory}",
        "sign {memory} --key {absent}",
        "sign {memory} --key {text}",
        "sign {memory} --key {binary}",
        "sign {memory} --key {model}",
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
    "verify": [
        "verify {memory} --model {absent}",
        "verify {memory} --models {model}",
        "verify {memory} --key {absent}",
        "verify {memory} --key {key}",
        "verify {memory} --lineage {absent}",
    ],
}
OTHER_MODEL = ["certify {memory} --engine e", "leaks {memory} --text {text}", "ask {memory} Where?", "chat {memory}",
               "verify {memory}", "quantize {memory} -o {new}", "update {memory} {text} -o {new}",
               "export {memory} --to cartridge -o {folder}"]  # fmt: skip
UNREADABLE = [
    *(f"{command} {{{file}}}{more}"
      for command, more in (("ask", " Where?"), ("chat", ""), ("inspect", ""), ("verify", ""),
                            ("leaks", " --text {text}"), ("log", ""), ("quantize", " -o {new}"),
                            ("update", " {text} -o {new}"),
                            ("export", " --to safetensors -o {folder}"),
                            ("sign", " --key {key}"), ("delta", " {memory} -o {new}"), ("apply", " {delta} -o {new}"))
      for file in ("absent", "text", "model", "torn")),
    *(f"apply {{memory}} {{{file}}} -o {{new}}" for file in ("absent", "text", "memory", "torn")),
    "apply {memory} {delta} -o {absent}/new",
    "delta {memory} {memory} -o {memory}",
    "keygen {key}",
    "keygen {absent}/new",
    "apply {memory} {delta} -o {new} --key {key}.pub",
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
