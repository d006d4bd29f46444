"""Text is UTF-8, wherever it comes from, or is refused by name; what a terminal cannot show is escaped."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lcc.cli import app as cli
from lcc.embedded_model import load_embedded
from lcc.errors import InputError
from lcc.evaluation.questions import read_questions
from lcc.pipeline.options import CompileOptions
from lcc.text.queries import load_queries
from lcc.utils import utf8
from lcc.utils.jsonl import load_rows
from lcc.utils.utf8 import check_arguments, check_text, decode, read_file
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

LATIN1 = "Café in Tarn".encode("latin-1")
READ = {
    "plain": (b"Caf\xc3\xa9", "Café"),
    "empty": (b"", ""),
    "byte order mark": (b"\xef\xbb\xbfMara", "Mara"),
    "two marks": (b"\xef\xbb\xbf\xef\xbb\xbfMara", "Mara"),
    "line ends": (b"a\r\nb\rc\n", "a\nb\nc\n"),
    "beyond the first plane": ("😀".encode(), "😀"),
}
REFUSED = {
    "latin-1": (LATIN1, r"is not UTF-8 text \(character 4 is '\\udce9'\)"),
    "cut off": ("Café".encode()[:-1], "is not UTF-8"),
    "half of a pair": (b"\xed\xa0\x80", "is not UTF-8"),
    "UTF-16": ("Mara".encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
    "UTF-16, big end first": (b"\xfe\xff\0M", "is UTF-16"),
    "UTF-32": ("Mara".encode("utf-32"), "is UTF-32"),
    "UTF-16 without a mark": ("Mara".encode("utf-16-le"), "holds zero bytes"),
}


@pytest.mark.parametrize(("content", "text"), READ.values(), ids=READ)
def test_what_is_read(content, text, tmp_path):
    assert decode(content, "it") == text
    (tmp_path / "file").write_bytes(content)
    assert read_file(tmp_path / "file") == text


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(content, message, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=f"file {message}"):
        read_file(tmp_path / "file")


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(utf8, "LARGEST", 5)
    (tmp_path / "large").write_bytes(b"123456")
    for name, message in {"large": "larger than 5 bytes", "": "directory", "absent": "No such file"}.items():
        with pytest.raises(InputError, match=message) as error:
            read_file(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(InputError, match="/dev/zero is larger"):
        read_file("/dev/zero")


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfMara")))
    assert read_file("-") == "Mara"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LATIN1)))
    with pytest.raises(InputError, match="standard input is not UTF-8"):
        read_file("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="no standard input"):
        read_file("-")


@pytest.fixture
def pipe():
    """What makes a pipe's path, such as a shell names by <(...), out of what is in it."""
    opened = []

    def make(content: bytes) -> str:
        reading, writing = os.pipe()
        threading.Thread(target=lambda: (os.write(writing, content), os.close(writing))).start()
        opened.append(reading)
        return f"/dev/fd/{reading}"

    yield make
    for each in opened:
        os.close(each)


def test_rows_come_from_pipes(pipe, monkeypatch):
    rows = b'\xef\xbb\xbf{"query": "Say: dog."}\n'
    assert load_rows(pipe(rows)) == [{"query": "Say: dog."}]
    assert load_queries(pipe(rows)) == ["Say: dog."]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows)))
    assert load_queries("-") == ["Say: dog."]
    with pytest.raises(InputError, match="not UTF-8"):
        load_rows(pipe(LATIN1))


def test_a_pipe_is_read_once_for_many_compilations(pipe, tmp_path):
    given = {"queries": pipe(b'{"query": "Say: dog."}'), "questions": pipe(b'{"question": "Where?"}'), "ratio": 8}
    options = CompileOptions.of(**given)
    assert (options.queries, options.questions) == (["Say: dog."], [{"question": "Where?"}])
    assert CompileOptions.of().queries_for(load_embedded()[1]) == load_queries()
    with pytest.raises(InputError, match="no file"):
        CompileOptions.of(questions=tmp_path / "absent.jsonl")


def test_rows_in_folders_that_may_not_be_searched(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match=r"q\.jsonl: Permission denied"):
        load_rows(str(tmp_path / "q.jsonl"))


@pytest.mark.parametrize("written", ["{}", "\ufeff{}", "{}\n"])
def test_a_context_is_the_text_however_it_was_read(written, llama, tokenizer, text):
    row = {"question": "Where?", "context": written.replace("{}", text.replace(". ", ".\r\n"))}
    (found,) = read_questions([row], text.replace(". ", ".\n"), llama, tokenizer)
    assert found.example.question == "Where?"


def test_arguments():
    bad = os.fsdecode(LATIN1)
    check_arguments({"questions": ["Où?"], "path": (os.fspath,), "steps": 3, "model": None})
    for arguments in ({"model": bad}, {"questions": ["Where?", bad]}):
        with pytest.raises(InputError, match=f"{next(iter(arguments))} .*not UTF-8"):
            check_arguments(arguments)
    assert check_text("\ufeffWhere?", "it") == "Where?"


@pytest.fixture
def lcc_command(tokenizer, text, tmp_path, monkeypatch):
    """Runs the entry point as a shell would, with bytes in and out; the memory m is of a tiny model."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("model")
    tokenizer.save_pretrained("model")
    plain_memory(tiny_model("llama"), tokenizer, text, monkeypatch)[0].save("m")

    def run(*arguments, stdin=b"", encoding="utf-8"):
        streams = {"stdin": io.BytesIO(stdin), "stdout": io.BytesIO(), "stderr": io.BytesIO()}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding))
        monkeypatch.setattr(sys, "argv", ["lcc", arguments[0], "--model", "model", *arguments[1:]])
        with pytest.raises(SystemExit) as left:
            cli.run()
        sys.stdout.flush()
        sys.stderr.flush()
        return left.value.code or 0, streams["stdout"].getvalue().decode(), streams["stderr"].getvalue().decode()

    return run


BAD = os.fsdecode(LATIN1)
COMMANDS = {
    "compile -": (["compile", "-", "-o", "x"], LATIN1),
    "chat": (["chat", "m"], LATIN1 + b"\n"),
    "chat, later": (["chat", "m"], b"Where?\n" + LATIN1 + b"\n"),
    "ask": (["ask", "m", "Where?", BAD], b""),
    "ask of a model": (["ask", "m", "Where?", "--model", BAD], b""),
    "a setting": (["compile", "m", "-o", "x", "--set", f"loss={BAD}"], b""),
    "questions": (["compile", "text", "-o", "x", "--questions", BAD], b""),
    "eval": (["eval", BAD, "-o", "x"], b""),
    "export": (["export", "m", "--to", BAD, "-o", "x"], b""),
    "update": (["update", "m", "-", "-o", "x"], LATIN1),
    "quantize": (["quantize", "m", "--dtype", BAD, "-o", "x"], b""),
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("arguments", "stdin"), COMMANDS.values(), ids=COMMANDS)
def test_bytes_that_are_not_utf8_end_a_command_with_a_line(arguments, stdin, encoding, lcc_command):
    code, _, errors = lcc_command(*arguments, stdin=stdin, encoding=encoding)
    assert code == 2
    assert "not UTF-8" in errors
    assert len(errors.splitlines()) == 1


def test_names_that_are_not_utf8_are_told(lcc_command):
    code, _, errors = lcc_command("verify", BAD)
    assert (code, errors) == (4, "error: there is no file Caf\\udce9 in Tarn\n")
    for name in ("a.txt", f"{BAD}.txt", "b.txt"):
        Path(name).write_text("Mara")
    code, shown, _ = lcc_command("compile", "a.txt", f"{BAD}.txt", "b.txt", "-o", "out", "--json")
    rows = json.loads(shown)["documents"]
    assert (code, [row["source"] for row in rows]) == (1, ["a.txt", f"{BAD}.txt", "b.txt"])
    assert all("too few for ratio" in row["error"] for row in rows)
    code, shown, _ = lcc_command("compile", "a.txt", f"{BAD}.txt", "-o", "out")
    assert (code, "Caf\\udce9 in" in shown) == (1, True)


def test_what_a_terminal_cannot_show_is_escaped(lcc_command):
    code, shown, errors = lcc_command("ask", "m", "Où?", "Wo?", encoding="ascii")
    assert (code, errors) == (0, "")
    assert "O\\xf9?" in shown
    code, shown, _ = lcc_command("ask", "m", "Où?", "--json", encoding="ascii")
    assert json.loads(shown)["answers"][0]["question"] == "Où?"


def test_chat_takes_utf8_whatever_the_terminal_says(lcc_command):
    code, shown, _ = lcc_command("chat", "m", stdin="\ufeffOù?\nWo?\n".encode(), encoding="ascii")
    assert code == 0
    assert shown.count("memory:") == 2


def test_a_utf16_document_is_named(tmp_path, text):
    (tmp_path / "note.txt").write_text(text, "utf-16")
    result = CliRunner().invoke(cli.app, ["compile", str(tmp_path / "note.txt"), "-o", str(tmp_path / "m")])
    assert result.exit_code == 2
    assert "is UTF-16, not UTF-8" in result.output
