"""kvpress' own methods: each keeps some of the K and V of the full text, at the positions where they were.

kvpress wants an older transformers than the package is tested with, in an environment of its own where the whole table
can run: ``pip install -c benchmarks/constraints-kvpress.txt -e '.[bench]' kvpress``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

import lcc_kernels as lk
from lcc.evaluation import Answers, Example, answer_examples
from lcc.modeling.kv import KV, decoder

from .workbench import Options, Peer, PeerMethod, Workbench

MISSING = "kvpress is not installed: see benchmarks/constraints-kvpress.txt"
# The tokens kept, or for KVzip the pairs dropped, are rounded down: this keeps a whole number what it is.
ROUNDING = 1e-9
# Tokens that SnapKV looks back from: kvpress' 64 would be more than the whole budget.
WINDOWS = (4, 8, 16)
# With 16, of a budget of 17, ChunkKV leaves layers of different lengths.
CHUNK_WINDOWS = (4, 8)


class Press(PeerMethod):
    """Reads prefix and text under a press that leaves as many tokens as prefix and buffer have."""

    def __init__(self, name: str, bench: Workbench, options: Options, make: Callable[..., Any]):
        super().__init__(name, bench, options)
        self.make = make

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer from what the press left, at the positions that follow the full text."""
        began = time.monotonic()
        ids = [*self.chat.prefix_ids, *self.chat.ids(context)]
        kept = len(self.chat.prefix_ids) + self.tokens(context)
        press = self.make(compression_ratio=1 - kept / len(ids), **self.options)
        with pressed(self.model, press, ids) as full:
            visible = moved(self.model, full, len(full) - len(ids))
            seconds = time.monotonic() - began
            hidden = _hidden_pairs(self.model)
            # Pairs that a press only hides are hidden for a single sequence.
            batch = 1 if hidden else self.batch
            texts = answer_examples(self.model, self.chat, visible, examples, batch)
        pair = 2 * visible.keys.shape[3] * visible.keys.element_size()
        return Answers(texts, visible.nbytes - hidden * pair, seconds)


@contextmanager
def pressed(model: PreTrainedModel, press: Any, ids: Sequence[int]) -> Iterator[KV]:
    """K and V (rotated) that ``press`` leaves of ``ids``; some of them may be hidden from attention in the block."""
    cache = DynamicCache()
    attentions = [layer.self_attn for layer in decoder(model).layers]
    try:
        with torch.no_grad(), press(model):
            decoder(model)(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache)
        yield KV.of(cache)
    finally:
        for attention in attentions:
            for name in ("rotary_emb", "masked_key_indices"):
                if hasattr(attention, name):
                    delattr(attention, name)


def moved(model: PreTrainedModel, kv: KV, by: int) -> KV:
    """The same K and V with every rotated key ``by`` positions further, or back where that is negative.

    For rotary embeddings that do not scale attention.
    """
    position = torch.full((1, len(kv)), abs(by), device=kv.keys.device)
    cos, sin = decoder(model).rotary_emb(kv.keys, position)
    turn = lk.apply_rotary if by > 0 else lk.undo_rotary
    return replace(kv, keys=turn(kv.keys, cos[0], sin[0]))


def _hidden_pairs(model: PreTrainedModel) -> int:
    """How many (head, token) pairs of K and V the press hides in all layers."""
    hidden = (getattr(layer.self_attn, "masked_key_indices", None) for layer in decoder(model).layers)
    return sum(len(indices[0]) for indices in hidden if indices is not None)


def _snapkv(compression_ratio: float, **options: Any) -> Any:
    from kvpress import SnapKVPress

    return SnapKVPress(max(0.0, compression_ratio - ROUNDING), **options)


def _expected_attention(compression_ratio: float, **options: Any) -> Any:
    from kvpress import ExpectedAttentionPress

    return ExpectedAttentionPress(max(0.0, compression_ratio - ROUNDING), **options)


def _chunkkv(compression_ratio: float, chunk_length: int, **options: Any) -> Any:
    from kvpress import ChunkKVPress

    return ChunkKVPress(_snapkv(compression_ratio, **options), chunk_length)


def _kvzip(compression_ratio: float, **options: Any) -> Any:
    from kvpress import KVzipPress

    return KVzipPress(compression_ratio + ROUNDING, **options)


def _peer(make: Callable[..., Any], source: str, variants: tuple[Options, ...]) -> Peer:
    return Peer(lambda name, bench, options: Press(name, bench, options, make), f"{source}, by kvpress", variants)


def installed() -> bool:
    """Whether kvpress can be imported."""
    return find_spec("kvpress") is not None


PRESSES = {
    "snapkv": _peer(_snapkv, "SnapKV", tuple({"window_size": window} for window in WINDOWS)),
    "expected_attention": _peer(
        _expected_attention, "Expected Attention", tuple({"n_future_positions": tokens} for tokens in (512, 64))
    ),
    "chunkkv": _peer(
        _chunkkv,
        "ChunkKV over SnapKV's scores",
        tuple({"window_size": window, "chunk_length": length} for length in (5, 10, 20) for window in CHUNK_WINDOWS),
    ),
    "kvzip": _peer(
        _kvzip, "KVzip", tuple({"layerwise": False, "kvzip_plus_normalization": plus} for plus in (False, True))
    ),
}
