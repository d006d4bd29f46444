"""Readable attachment: a row at a time, in float32 or better."""

from __future__ import annotations

from ..rotary import apply_rotary
from .attachment import Attachment


def attach(a: Attachment) -> None:
    """Write every token of every layer and head to its rows."""
    keys, values = a.keys.to(a.wide), a.values.to(a.wide)
    if a.key_scale is not None and a.value_scale is not None:
        keys = keys * a.key_scale.to(a.wide)[:, :, None, :]
        values = values * a.value_scale.to(a.wide)[:, :, :, None]
    keys = apply_rotary(keys, a.cos.to(a.wide), a.sin.to(a.wide), a.interleaved)
    for caches, memory in ((a.key_caches, keys), (a.value_caches, values)):
        for cache, layer in zip(caches, memory, strict=True):
            for token, slot in enumerate(a.slots.tolist()):
                row = slot % a.block_size
                block = slice(slot // a.block_size, slot // a.block_size + 1) if a.paged else slice(None)
                cache[block, :, row] = layer[:, token].to(cache.dtype)
