"""Memories made without compiling: the model's own K and V of a text, recorded before it rotates them."""

from __future__ import annotations

import sys

import torch

import lcc
from lcc.memory.payload import KVPayload
from lcc.modeling.kv import KV, decoder
from lcc.text.chat_format import ChatFormat


def record_unrotated(model, monkeypatch) -> list[torch.Tensor]:
    """Every key tensor, (batch, kv_heads, tokens, head_dim), that ``model`` is about to rotate, layer by layer."""
    module = sys.modules[type(model).__module__]
    rotate, seen = module.apply_rotary_pos_emb, []

    def recording(q, k, *arguments, **options):
        seen.append(k)
        return rotate(q, k, *arguments, **options)

    monkeypatch.setattr(module, "apply_rotary_pos_emb", recording)
    return seen


@torch.no_grad()
def plain_memory(model, tokenizer, text: str, monkeypatch, start: int = 0):
    """A memory that holds ``text`` itself, a token a token, and the cache of [prefix | text] from ``start`` on that
    transformers made of it, all by itself."""
    chat = ChatFormat.of(tokenizer)
    prefix = chat.prefix_ids
    ids = torch.tensor([[*prefix, *chat.ids(text)]])
    positions = torch.arange(start, start + ids.shape[1])[None]
    with monkeypatch.context() as patch:
        keys = record_unrotated(model, patch)
        cache = decoder(model)(input_ids=ids, position_ids=positions, use_cache=True).past_key_values
    unrotated = torch.cat(keys)[:, :, len(prefix) :]
    values = torch.cat([layer.values for layer in cache.layers])[:, :, len(prefix) :]
    memory = lcc.Memory(
        payload=KVPayload(KV(unrotated, values)), prefix_ids=tuple(prefix), ratio=1.0, source_tokens=values.shape[2],
        source_sha256="", rope=dict(model.config.rope_parameters), fingerprint=lcc.fingerprint(model, tokenizer),
        settings={},
    )  # fmt: skip
    return memory, cache


def certificate_with(questions: dict | None) -> dict:
    """A certificate, every figure 1, whose ``questions`` are these, or None for none."""
    readers = {"full_text": 1.0, "memory": 1.0, "no_text": 1.0}
    drift = {name: {"kl": 1.0, "changed": 1.0} for name in readers}
    asked = {"source": "given", "count": 1, "referenced": 1, "score": readers, "kept": 1.0, "missed": []}
    return {
        "questions": None if questions is None else asked | questions,
        "reconstruction": {"tokens": 1, "accuracy": readers},
        "held_out": {"answers": 1, "tokens": 1, "kl": readers},
        "general": {"answers": 1, "from_full_text": drift, "from_no_text": drift},
        "dtype": "float32",
        "seconds": 1.0,
    }
