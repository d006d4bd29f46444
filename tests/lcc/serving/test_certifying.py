"""A memory's row on a server: what is compared, and what stands in the file."""

from __future__ import annotations

from dataclasses import replace

import pytest

import lcc
from lcc.serving.certifying import certify_served
from tests.support.plain_memories import plain_memory

TEXT = "Mara lives in the quiet old town of Selby. Hugo works every day as a baker."
QUESTIONS = ("Where does Mara live?", "What is the job of Hugo?", ("Where does Mara live?", "Selby", "And Hugo?"))


@pytest.fixture
def memory(embedded, monkeypatch):
    return replace(plain_memory(*embedded, TEXT, monkeypatch)[0], questions=QUESTIONS)


def test_answers_are_compared_one_by_one(memory, embedded, tmp_path):
    asked = []

    def ask(query, max_new_tokens):
        asked.append(query)
        return {"Where does Mara live?": "Selby", "What is the job of Hugo?": "a smith"}.get(query, "")

    certified = certify_served(memory, *embedded, ask, "vllm 0.32.0", "bfloat16")
    assert sorted(map(str, asked)) == sorted(map(str, QUESTIONS))
    (row,) = certified.served
    assert (row["engine"], row["dtype"], row["answers"], row["same"]) == ("vllm 0.32.0", "bfloat16", 3, 1)
    assert row["changed"][0] == {"question": "What is the job of Hugo?", "lcc": "baker", "served": "a smith"}
    assert row["changed"][1]["question"] == "And Hugo?"
    certified.save(tmp_path / "m.lcc.safetensors")
    stored = lcc.Memory.load(tmp_path / "m.lcc.safetensors")
    assert stored.served == certified.served
    assert stored.digest == memory.digest
    again = certify_served(stored, *embedded, lambda *_: "", "vllm 0.32.0", "bfloat16", count=2)
    assert [(row["answers"], row["same"]) for row in again.served] == [(2, 0)]
    other = certify_served(stored, *embedded, lambda *_: "", "llama-cpp", "float32", queries=["Who?"])
    assert [row["engine"] for row in other.served] == ["vllm 0.32.0", "llama-cpp"]


def test_refusals(memory, embedded, llama):
    model, tokenizer = embedded
    with pytest.raises(lcc.InputError, match="--questions"):
        certify_served(replace(memory, questions=()), model, tokenizer, lambda *_: "", "e", "float32")
    with pytest.raises(lcc.MismatchError):
        certify_served(memory, llama, tokenizer, lambda *_: "", "e", "float32")

    def down(*_):
        raise lcc.InputError("the server does not answer")

    with pytest.raises(lcc.InputError, match="does not answer"):
        certify_served(memory, model, tokenizer, down, "e", "float32")
