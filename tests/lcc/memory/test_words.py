"""Words of the text in a memory's file: found, and stripped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.memory.words import words_of
from tests.support.plain_memories import plain_memory


@pytest.fixture
def memory(llama, tokenizer, text, fast):
    made = lcc.compile(llama, tokenizer, text, **fast | {"certify": True, "held_out": 0.4})
    missed = [{"question": "Where is Hugo?", "full_text": "Tarn", "memory": "Bonn"}]
    questions = made.certificate["questions"] | {"missed": missed}
    rehearsed = {"questions": questions, "held_out": None}
    changed = [{"question": "Who is Ada?", "lcc": "a baker", "served": "a smith"}]
    row = {"engine": "e", "dtype": "float32", "date": "2026-11-30", "answers": 2, "same": 1, "changed": changed}
    certificate = made.certificate | {"questions": questions, "rehearsed": rehearsed}
    return replace(made, certificate=certificate, served=[row], questions=("Where?", ("Who?", "turtle", "And now?")))


def test_every_word_is_found_and_stripped(memory, tmp_path):
    said = ["Where?", "Who?", "turtle", "And now?", *["Where is Hugo?", "Tarn", "Bonn"] * 2, "Who is Ada?", "a baker"]
    assert words_of(memory) == [*said, "a smith"]
    stripped = lcc.strip(memory)
    assert words_of(stripped) == []
    assert stripped.digest == memory.digest
    stripped.save(tmp_path / "m")
    written = (tmp_path / "m").read_bytes()
    assert not any(word.encode() in written for word in words_of(memory))
    # Figures stay.
    assert stripped.certificate["questions"]["score"] == memory.certificate["questions"]["score"]
    assert stripped.certificate["rehearsed"]["questions"]["count"] == memory.certificate["questions"]["count"]
    assert stripped.served[0]["same"] == 1
    assert words_of(memory)


def test_a_memory_that_was_not_measured_is_stripped(llama, tokenizer, text, monkeypatch):
    memory = replace(plain_memory(llama, tokenizer, text, monkeypatch)[0], questions=("Where?",))
    assert words_of(lcc.strip(memory)) == []


def test_a_stripped_memory_is_read_and_updated(memory, llama, tokenizer, fast):
    stripped = lcc.strip(memory)
    question = ["Where does Mara live?"]
    assert lcc.ask(llama, tokenizer, stripped, question) == lcc.ask(llama, tokenizer, memory, question)
    more = "Timo lives in Bonn. His little dog is called Pim, and he works every day as a baker."
    updated = lcc.update(llama, tokenizer, stripped, more, certify=False, **fast)
    assert updated.buffer_tokens > memory.buffer_tokens
    assert torch.isfinite(updated.kv.keys).all()


def test_the_command(memory, tmp_path):
    memory.save(tmp_path / "m")
    runner = CliRunner()

    def run(*words):
        return runner.invoke(cli.app, ["strip", str(tmp_path / "m"), *map(str, words)])

    assert "without 13 questions and answers" in " ".join(run("-o", tmp_path / "bare").stdout.split())
    assert words_of(lcc.Memory.load(tmp_path / "bare")) == []
    assert run("-o", tmp_path / "bare").exit_code == 4
    assert run("-o", tmp_path / "m").exit_code == 4
    assert words_of(lcc.Memory.load(tmp_path / "m"))
    told = json.loads(run("-o", tmp_path / "m", "--force", "--json").stdout)
    assert told["self_questions"] == 0
    assert words_of(lcc.Memory.load(tmp_path / "m")) == []
