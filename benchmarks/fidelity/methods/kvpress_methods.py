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
from lcc.inference.reader import Reader
from lcc.modeling.kv import KV, decoder

from .biased_attention import attending_with
from .workbench import Held, Options, Peer, PeerMethod, Workbench

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

    @contextmanager
    def holding(self, text: str) -> Iterator[Held]:
        """What the press left, at the positions that follow the full text."""
        began = time.monotonic()
        ids = [*self.chat.prefix_ids, *self.chat.ids(text)]
        kept = len(self.chat.prefix_ids) + self.tokens(text)
        full, bias = pressed(self.model, self.make(compression_ratio=1 - kept / len(ids), **self.options), ids)
        visible = moved(self.model, full, len(full) - len(ids))
        reader, seconds = Reader(self.model, self.chat, visible), time.monotonic() - began
        if bias is None:
            yield Held(reader, visible.nbytes, seconds, batch=self.batch)
            return
        pair = 2 * visible.keys.shape[3] * visible.keys.element_size()
        nbytes = visible.nbytes - int(bias.isinf().sum()) * pair
        with attending_with(self.model, bias):
            # A batch would share what all sequences see, by an attention without biases.
            yield Held(reader, nbytes, seconds, batch=1)


def pressed(model: PreTrainedModel, press: Any, ids: Sequence[int]) -> tuple[KV, torch.Tensor | None]:
    """K and V (rotated) that ``press`` leaves of ``ids``.

    Returns:
        They, and if some pairs are only hidden from attention a bias for the scores, (layers, kv_heads, tokens): -inf
        there, and 0 elsewhere.
    """
    cache = DynamicCache()
    attentions = [layer.self_attn for layer in decoder(model).layers]
    try:
        with torch.no_grad(), press(model):
            decoder(model)(input_ids=torch.tensor([list(ids)], device=model.device), past_key_values=cache)
        kv = KV.of(cache)
        hidden = [getattr(attention, "masked_key_indices", None) for attention in attentions]
    finally:
        for attention in attentions:
            for name in ("rotary_emb", "masked_key_indices"):
                if hasattr(attention, name):
                    delattr(attention, name)
    if not any(map(bool, hidden)):
        return kv, None
    bias = kv.keys.new_zeros(kv.keys.shape[:3])
    for layer, indices in enumerate(hidden):
        if indices:
            _, heads, tokens = indices
            bias[layer, heads, tokens] = -torch.inf
    return kv, bias


def moved(model: PreTrainedModel, kv: KV, by: int) -> KV:
    """The same K and V with every rotated key ``by`` positions further, or back where that is negative.

    For rotary embeddings that do not scale attention.
    """
    position = torch.full((1, len(kv)), abs(by), device=kv.keys.device)
    cos, sin = decoder(model).rotary_emb(kv.keys, position)
    turn = lk.apply_rotary if by > 0 else lk.undo_rotary
    return replace(kv, keys=turn(kv.keys, cos[0], sin[0]))


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
