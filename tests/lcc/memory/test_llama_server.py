"""States in the real server of llama.cpp, which answers with them as this package does."""

from __future__ import annotations

import random

import pytest
import torch

import lcc
from lcc.memory.llama_cpp import NEIGHBOURS, parse_state_version, placeholders
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.support.llama_server import llama_server
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import FAMILIES, ROPES, tiny_model

pytest.importorskip("xllamacpp", reason="the package xllamacpp, a prebuilt llama.cpp server, is not installed")
gguf_model = pytest.importorskip("tests.support.gguf_model", reason="the package gguf is not installed")

TOKENS = 12
# Long sequences of a random model.
TEXT = "Mara lives in the quiet old town of Selby. Hugo works every day as a baker."
KINDS = ["llama", "llama3", "linear", "yarn", "mistral", "qwen2", "qwen3", "phi3"]


def gguf_of(folder, model, tokenizer):
    path = folder / "model.gguf"
    gguf_model.write_gguf(path, model, gguf_model.Vocabulary.of(tokenizer))
    return path


def answered(server, tokenizer, path, question: str, tokens: int = TOKENS) -> tuple[list[int], int]:
    """The greedy answer behind a state, and how many tokens the server took from it."""
    status, restored = server.slot("restore", path.name)
    assert status == 200, restored
    prompt = placeholders(path) + ChatFormat.of(tokenizer).query_ids(question)
    answer = server.complete(prompt, tokens)
    return answer["tokens"], answer["timings"]["cache_n"]


@torch.no_grad()
def own_answer(model, tokenizer, memories, question: str, tokens: int = TOKENS) -> list[int]:
    inputs = lcc.prompt(model, tokenizer, memories, [question])
    row = model.generate(
        **inputs, past_key_values=lcc.attach(model, memories), max_new_tokens=tokens, do_sample=False
    )[0]
    return row[inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def documents():
    return [document(random.Random(seed), people=2, attributes=4) for seed in (7, 8)]


@pytest.mark.parametrize(("kv", "flash_attn"), [("f32", False), ("f32", True), ("f16", False), ("f16", True)])
def test_the_server_answers_as_ask_does(kv, flash_attn, documents, embedded, tmp_path, monkeypatch):
    model, tokenizer = embedded
    first, second = (plain_memory(model, tokenizer, each.text, monkeypatch)[0] for each in documents)
    questions = [question.text for each in documents for question in each.questions[:4]]
    stacks = {"first": [first], "second": [second], "both": [first, second]}
    right = 0
    with llama_server(gguf_of(tmp_path, model, tokenizer), tmp_path, kv, flash_attn) as server:
        for name, stack in stacks.items():
            options = {"kv": kv, "flash_attn": flash_attn}
            path = lcc.export(model, stack, tmp_path / name, "llama-cpp", **options)
            texts = lcc.ask(model, tokenizer, stack, questions, max_new_tokens=TOKENS)
            for question, text in zip(questions, texts, strict=True):
                tokens, cached = answered(server, tokenizer, path, question)
                assert cached == len(placeholders(path))
                assert tokens == own_answer(model, tokenizer, stack, question)
                assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == text
                right += 1
