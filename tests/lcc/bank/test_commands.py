"""``lcc bank``: documents in, memories out, and what is there told as a table or as JSON."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import bank_add
from tests.support.small_memories import small_memory

FLASHMEM = ["--compiler", "flashmem", "--ratio", "4", "--no-certify"]


@pytest.fixture
def lcc_bank(tmp_path, embedded, monkeypatch):
    """``lcc bank``, run in a folder of its own with the embedded model: what it printed, parsed if it is JSON."""
    monkeypatch.setattr(bank_add, "load_model", lambda name: embedded)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(cli.app, ["bank", *map(str, arguments)])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout) if "--json" in arguments and not code else done.output

    return run


@pytest.fixture
def documents(text, tmp_path):
    paths = [tmp_path / "first.txt", tmp_path / "second.txt"]
    for path, content in zip(paths, (text, text + " " + text), strict=True):
        path.write_text(content)
    return paths


def statuses(told):
    return [document["status"] for document in told["documents"]]


def test_a_bank_from_documents_and_memories(lcc_bank, documents, tmp_path, text):
    assert statuses(lcc_bank("add", *documents, *FLASHMEM, "--json")) == ["compiled", "compiled"]
    assert statuses(lcc_bank("add", *documents, *FLASHMEM, "--json")) == ["skipped", "skipped"]
    with lcc.MemoryBank("bank") as bank:
        assert bank.text("first") == text
        bank.memory("first").save("third.lcc.safetensors")
    assert statuses(lcc_bank("add", "third.lcc.safetensors", "--json")) == ["imported"]
    listed = lcc_bank("list", "--json")["documents"]
    assert [(each["key"], each["status"], each["has_text"], each["compiler"]) for each in listed] == [
        ("first", "ok", True, "flashmem"),
        ("second", "ok", True, "flashmem"),
        ("third", "ok", False, "flashmem"),
    ]
    shown = lcc_bank("show", "first", "--json")
    assert (shown["key"], shown["source_tokens"], shown["ratio"]) == ("first", listed[0]["source_tokens"], 4)
    assert {passage["kind"] for passage in shown["passages"]} == {"text"}
    assert lcc_bank("verify", "--json") == {"bank": "bank", "documents": 3, "problems": []}
    assert lcc_bank("remove", "first", "third", "--json") == {"bank": "bank", "removed": ["first", "third"]}
    assert lcc_bank("rebuild", "--json") == {"bank": "bank", "documents": 1}
    for path in ("first.txt", "second.txt"):
        assert (tmp_path / path).exists()


def test_tables(lcc_bank, documents):
    assert "1 compiled" in lcc_bank("add", documents[0], *FLASHMEM)
    assert "first" in lcc_bank("list")
    assert "first is found by 0 questions and" in lcc_bank("show", "first")
    assert "1 memories, 0 problems" in lcc_bank("verify")
    assert "has 1 memories" in lcc_bank("rebuild")
    assert "removed first" in lcc_bank("remove", "first")


def test_forgotten_texts(lcc_bank, documents):
    lcc_bank("add", documents[0], *FLASHMEM)
    said = lcc_bank("add", *documents, *FLASHMEM, "--forget-text")
    assert "second has neither questions nor a text that is kept: no query will find it" in said
    assert os.listdir("bank/texts") == []
    assert [each["has_text"] for each in lcc_bank("list", "--json")["documents"]] == [False, False]
    lcc_bank("add", documents[0], *FLASHMEM)
    assert os.listdir("bank/texts") == ["first.txt"]


def test_a_redacted_passage_is_nowhere_in_the_bank(lcc_bank, documents, tmp_path):
    secret = "Mara lives in Tarn."
    documents[0].write_text(documents[0].read_text() + " " + secret)
    (tmp_path / "secrets.txt").write_text(secret)
    lcc_bank("add", documents[0], *FLASHMEM, "--redact", "secrets.txt")
    kept = (tmp_path / "bank/texts/first.txt").read_text()
    assert kept in documents[0].read_text()
    with lcc.MemoryBank("bank") as bank:
        assert bank.memory("first").redacted == 1
        assert bank.text("first") == kept
        assert bank.passages("first")
    for path in (tmp_path / "bank").rglob("*"):
        assert path.is_dir() or b"Tarn" not in path.read_bytes()
    told = lcc_bank("add", *documents, *FLASHMEM, "--redact", secret, code=1)
    assert "1 skipped, 1 failed" in told
    assert os.listdir("bank/texts") == ["first.txt"]


def test_what_differs_stays_unless_forced(lcc_bank, documents, text):
    lcc_bank("add", *documents, *FLASHMEM)
    documents[0].write_text("Another text. " + text)
    told = lcc_bank("add", *documents, *FLASHMEM, code=1)
    assert "failed" in told
    assert "--force" in told
    with lcc.MemoryBank("bank") as bank:
        assert bank.text("first") == text
    assert statuses(lcc_bank("add", *documents, *FLASHMEM, "--force", "--json")) == ["compiled", "skipped"]
    with lcc.MemoryBank("bank") as bank:
        assert bank.text("first") == "Another text. " + text
        bank.memory("second").save("first.lcc.safetensors")
    assert "1 failed" in lcc_bank("add", "first.lcc.safetensors", code=1)
    assert statuses(lcc_bank("add", "first.lcc.safetensors", "--force", "--json")) == ["imported"]
    assert statuses(lcc_bank("add", "first.lcc.safetensors", "--json")) == ["skipped"]


def test_an_error_in_one_document_does_not_stop_the_rest(lcc_bank, documents):
    documents[0].write_text("Mara")
    told = lcc_bank("add", *documents, "absent.txt", *FLASHMEM, code=1)
    assert "1 compiled" in told
    assert "2 failed" in told
    assert [each["key"] for each in lcc_bank("list", "--json")["documents"]] == ["second"]


def test_another_model_is_refused_before_any_work(lcc_bank, documents):
    with lcc.MemoryBank("bank", create=True) as bank:
        bank.put("other", small_memory("text"))
    assert "the memory was compiled for another" in lcc_bank("add", *documents, *FLASHMEM, code=3)
    assert os.listdir("bank/texts") == []


def test_two_documents_of_one_name_and_standard_input(lcc_bank, documents):
    assert "would both become the memory first: rename one" in lcc_bank("add", documents[0], "first.md", code=2)
    assert "standard input has no name" in lcc_bank("add", "-", code=2)
    assert "cannot name a memory" in lcc_bank("add", "a:b.txt", code=2)
    assert not os.path.exists("bank")


def test_a_missing_bank_and_a_missing_memory(lcc_bank):
    for command in (["list"], ["show", "mara"], ["remove", "mara"], ["verify"], ["rebuild"]):
        assert "there is no bank in bank: make one with lcc bank add" in " ".join(lcc_bank(*command, code=4).split())
    os.makedirs("bank/memories")
    for command in ("show", "remove"):
        assert "there is no memory 'mara' in the bank bank" in " ".join(lcc_bank(command, "mara", code=2).split())


def test_damage_is_told(lcc_bank, documents):
    lcc_bank("add", *documents, *FLASHMEM)
    with open("bank/memories/first.lcc.safetensors", "r+b") as file:
        file.truncate(100)
    with open("bank/bank.sqlite", "wb") as file:
        file.write(b"garbage" * 1000)
    told = " ".join(lcc_bank("list").split())
    assert "the index of bank is damaged (file is not a database): it was made anew from the memories" in told
    assert "damaged: first is skipped: bank/memories/first.lcc.safetensors is truncated" in told
    assert "problem: first: bank/memories/first.lcc.safetensors is truncated" in lcc_bank("verify", code=1)
