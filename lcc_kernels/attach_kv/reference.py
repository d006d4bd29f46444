"""Readable attachment: a row at a time, in float32 or better."""

from __future__ import annotations

from ..rotary import apply_rotary
from .attachment import Attachment
from .int4 import unpack_int4


def attach(a: Attachment) -> None:
    """Write every token of every layer and head to its rows."""
    keys, values = ((unpack_int4(x) if a.packed else x).to(a.wide) for x in (a.keys, a.values))
    if (factors := a.factors) is not None:
        keys, values = keys * factors[0], values * factors[1]
    keys = apply_rotary(keys, a.cos.to(a.wide), a.sin.to(a.wide), a.interleaved)
    for caches, memory in ((a.key_caches, keys), (a.value_caches, values)):
        for cache, layer in zip(caches, memory, strict=True):
            for token, slot in enumerate(a.slots.tolist()):
                row = slot % a.block_size
                block = slice(slot // a.block_size, slot // a.block_size + 1) if a.paged else slice(None)
                cache[block, :, row] = layer[:, token].to(cache.dtype)
