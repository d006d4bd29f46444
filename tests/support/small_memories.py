"""Memories of a few numbers, that no model has made."""

from __future__ import annotations

import torch

import lcc
from lcc.modeling.kv import KV
from lcc.text.chat_format import Query
from lcc.utils.hashing import text_digest


def small_memory(
    text: str, *questions: Query, model: str = "a model", prefix_ids: tuple[int, ...] = (1, 2)
) -> lcc.Memory:
    """A memory of ``text`` that carries ``questions``, of a model whose weights have this digest."""
    return lcc.Memory(
        payload=lcc.KVPayload(KV(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))), prefix_ids=prefix_ids, ratio=8.0,
        source_tokens=len(text.split()), source_sha256=text_digest(text), rope={}, settings={}, questions=questions,
        fingerprint={"model_weights": model},
    )  # fmt: skip
