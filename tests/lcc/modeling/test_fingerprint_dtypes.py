"""Fingerprints over dtypes and parts: the same numbers are the same model, rounded ones are another."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import lcc
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.modeling.fingerprint import (
    differing,
    fingerprint,
    weights_digest,
)
from tests.lcc.memory.test_attachment import TEXT
from tests.support.plain_memories import plain_memory


def test_a_checkpoint_in_bfloat16_is_the_same_model_in_float32(llama, tokenizer, tmp_path):
    llama.to(torch.bfloat16).save_pretrained(tmp_path)
    half, single = (AutoModelForCausalLM.from_pretrained(tmp_path, dtype=d) for d in (torch.bfloat16, torch.float32))
    found = fingerprint(half, tokenizer), fingerprint(single, tokenizer)
    assert [each["model_dtype"] for each in found] == ["bfloat16", "float32"]
    assert differing(*found) == []


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16])
def test_weights_that_another_dtype_rounds_are_refused_by_name(other, llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    rounded = copy.deepcopy(llama).to(other)
    name = str(other).removeprefix("torch.")
    message = rf"weights are {name} here and were float32 .* dtype=torch\.float32"
    for refused in (
        lambda: lcc.ask(rounded, tokenizer, memory, ["Where?"]),
        lambda: lcc.attach(rounded, memory),
        lambda: memory.verify(rounded),
    ):
        with pytest.raises(lcc.MismatchError, match=message):
            refused()
    # Another model in another dtype gets the same advice, and the plain refusal once it is followed.
    llama.model.norm.weight.data[0] += 1
    with pytest.raises(lcc.MismatchError, match="load the one it was compiled for"):
        memory.verify(llama)


def test_model_and_tokenizer_are_verified_apart(llama, tokenizer, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    other = build_tokenizer()
    other.chat_template += " "
    memory.verify(llama)
    memory.verify(None, tokenizer)
    for model in (llama, None):
        with pytest.raises(lcc.MismatchError, match=r"\(chat_template\)"):
            memory.verify(model, other)
    for known in ({}, {"tokenizer": memory.fingerprint["tokenizer"]}):
        with pytest.raises(lcc.MismatchError, match=r"\(model_config, model_weights\)"):
            replace(memory, fingerprint=known).verify(llama)


def test_buffers_that_no_file_holds_do_not_count(llama):
    """Some ropes change theirs while they are used."""
    before = weights_digest(llama)
    llama.model.rotary_emb.inv_freq *= 2
    assert weights_digest(llama) == before
