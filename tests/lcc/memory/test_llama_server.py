"""States in the real server of llama.cpp, which answers with them as this package does."""

from __future__ import annotations

import random

import pytest
import torch

import lcc
from benchmarks.serving.llama_server import llama_server
from lcc.memory import llama_cpp
from lcc.memory.llama_cpp import NEIGHBOURS, VERSIONS, parse_state, placeholders
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import EXPORTED, FAMILIES, tiny_model

pytest.importorskip("xllamacpp", reason="the package xllamacpp, a prebuilt llama.cpp server, is not installed")
gguf_model = pytest.importorskip("benchmarks.common.gguf_model", reason="the package gguf is not installed")

TOKENS = 12
TEXT = "Mara lives in the quiet old town of Selby. Hugo works every day as a baker."
KINDS = [*FAMILIES, *EXPORTED, "linear", "yarn"]


def gguf_of(folder, model, tokenizer):
    path = folder / "model.gguf"
    gguf_model.write_gguf(path, model, gguf_model.Vocabulary.of(tokenizer))
    return path


def state_of(server) -> dict[str, int]:
    status, saved = server.slot("save", "empty")
    assert status == 200, saved
    return parse_state(server.folder / "empty")


def exported(server, model, memories, kv: str = "f32", flash_attn: bool = False):
    options = {"kv": kv, "flash_attn": flash_attn, **state_of(server)}
    return lcc.export(model, memories, server.folder / "memory", "llama-cpp", **options)


def restore(server, path) -> None:
    status, restored = server.slot("restore", path.name)
    assert status == 200, restored


def answered(server, tokenizer, path, question: str) -> tuple[list[int], int]:
    """The greedy answer behind a state that the slot holds, and how many tokens the server found there."""
    answer = server.complete(placeholders(path) + ChatFormat.of(tokenizer).query_ids(question), TOKENS)
    return answer["tokens"], answer["timings"]["cache_n"]


@torch.no_grad()
def own_answer(model, tokenizer, memories, question: str) -> list[int]:
    inputs, cache = lcc.prompt(model, tokenizer, memories, [question]), lcc.attach(model, memories)
    row = model.generate(**inputs, past_key_values=cache, max_new_tokens=TOKENS, do_sample=False)[0]
    return row[inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def documents():
    return [document(random.Random(seed), people=2, attributes=4) for seed in (7, 8)]


@pytest.mark.parametrize(("kv", "flash_attn"), [("f32", False), ("f32", True), ("f16", False), ("f16", True)])
def test_the_server_answers_as_ask_does(kv, flash_attn, documents, embedded, tmp_path, monkeypatch):
    model, tokenizer = embedded
    first, second = (plain_memory(model, tokenizer, each.text, monkeypatch)[0] for each in documents)
    questions = [(asked.text, asked.answer) for each in documents for asked in each.questions()[::3]]
    right = 0
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path, kv, flash_attn) as server:
        for stack in ([first], [second], [first, second]):
            path = exported(server, model, stack, kv, flash_attn)
            restore(server, path)
            texts = lcc.ask(model, tokenizer, stack, [question for question, _ in questions], max_new_tokens=TOKENS)
            for (question, value), text in zip(questions, texts, strict=True):
                tokens, cached = answered(server, tokenizer, path, question)
                assert cached >= len(placeholders(path))
                assert tokens == own_answer(model, tokenizer, stack, question)
                assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == text
                right += value in text
    assert right > len(questions)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_and_rope(kind, tokenizer, tmp_path, monkeypatch):
    """A random model's answer depends on every channel of every key."""
    model = tiny_model(kind)
    memory, _ = plain_memory(model, tokenizer, TEXT, monkeypatch)
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path, "f32", False) as server:
        path = exported(server, model, memory)
        restore(server, path)
        for question in ("Where does Mara live?", "Say: dog cat.", "What is the job of Hugo?"):
            tokens, cached = answered(server, tokenizer, path, question)
            assert tokens == own_answer(model, tokenizer, memory, question)
            assert cached >= len(placeholders(path))
        monkeypatch.setattr(llama_cpp, "_neighbours", lambda model: not NEIGHBOURS[model.config.model_type])
        restore(server, exported(server, model, memory))
        assert answered(server, tokenizer, path, question)[0] != tokens


def test_a_state_that_the_server_cannot_read_is_an_error(embedded, tmp_path, monkeypatch):
    model, tokenizer = embedded
    memory, _ = plain_memory(model, tokenizer, TEXT, monkeypatch)
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path, "f32", False) as server:
        started = {"kv": "f32", "flash_attn": False, **state_of(server)}
        other = min(VERSIONS.keys() - {started["state_version"]})
        wrong = {"kv": "f16", "flash_attn": True, "state_version": other, "streams": 2}
        for name, value in wrong.items():
            path = lcc.export(model, memory, tmp_path / name, "llama-cpp", **started | {name: value})
            status, answer = server.slot("restore", path.name)
            assert status == 400, name
            assert "Unable to restore slot" in answer["error"]["message"]
        path, question = exported(server, model, memory), "Where does Mara live?"
        restore(server, path)
        expected = own_answer(model, tokenizer, memory, question), len(placeholders(path))
        assert answered(server, tokenizer, path, question) == expected


def test_a_prompt_of_another_memory_is_not_answered_from_the_slot(documents, embedded, tmp_path, monkeypatch):
    model, tokenizer = embedded
    first, second = (plain_memory(model, tokenizer, each.text, monkeypatch)[0] for each in documents)
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path) as server:
        options = {"kv": "f32", "flash_attn": False, **state_of(server)}
        paths = [
            lcc.export(model, each, tmp_path / name, "llama-cpp", **options)
            for name, each in (("first", first), ("second", second))
        ]
        restore(server, paths[0])
        assert answered(server, tokenizer, paths[1], "Where does Mara live?")[1] == 0


@pytest.mark.parametrize("unified", [True, False])
def test_any_slot_of_several_takes_a_state(unified, documents, embedded, tmp_path, monkeypatch):
    model, tokenizer = embedded
    memory, _ = plain_memory(model, tokenizer, documents[0].text, monkeypatch)
    question = documents[0].questions()[0].text
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path, slots=3, unified=unified) as server:
        assert state_of(server)["streams"] == (1 if unified else 3)
        path = exported(server, model, memory)
        prompt = placeholders(path) + ChatFormat.of(tokenizer).query_ids(question)
        for number in (2, 0):
            assert server.slot("restore", path.name, number)[0] == 200
            answer = server.complete(prompt, TOKENS, number)
            assert answer["timings"]["cache_n"] == len(placeholders(path))
            assert answer["tokens"] == own_answer(model, tokenizer, memory, question)


def test_what_a_server_saved_is_not_replaced(embedded, tmp_path, monkeypatch):
    model, tokenizer = embedded
    memory, _ = plain_memory(model, tokenizer, TEXT, monkeypatch)
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path) as server:
        server.complete([1, 2, 3], 2)
        assert server.slot("save", "saved")[0] == 200
    with pytest.raises(lcc.MemoryFileError, match="not one of this package's"):
        lcc.export(model, memory, tmp_path / "saved", "llama-cpp")
