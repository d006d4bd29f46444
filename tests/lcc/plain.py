"""Memories made without compiling: the model's own K and V of a text, recorded before it rotates them."""

from __future__ import annotations

import sys

import torch

import lcc
from lcc.chat import ChatFormat
from lcc.kv import KV, decoder


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
        kv=KV(unrotated, values), prefix_ids=tuple(prefix), ratio=1.0, source_tokens=values.shape[2], source_sha256="",
        rope=dict(model.config.rope_parameters), fingerprint=lcc.fingerprint(model, tokenizer), settings={},
    )  # fmt: skip
    return memory, cache
