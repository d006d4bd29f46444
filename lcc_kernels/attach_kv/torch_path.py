"""Attachment in torch, a layer at a time, so that what lies between memory and cache stays in the processor's cache."""

from __future__ import annotations

import torch

from ..rotary import apply_rotary
from .attachment import Attachment


def attach(a: Attachment) -> None:
    """Write every layer's keys and values to their slots."""
    cos, sin, slots = a.cos.to(a.wide), a.sin.to(a.wide), a.slots.long()
    key_scale = [None] * len(a.keys) if a.key_scale is None else a.key_scale.to(a.wide)[:, :, None, :]
    value_scale = [None] * len(a.keys) if a.value_scale is None else a.value_scale.to(a.wide)[:, :, :, None]
    for keys, scale, cache in zip(a.keys, key_scale, a.key_caches, strict=True):
        turned = apply_rotary(_dequantised(keys, scale, a.wide), cos, sin, a.interleaved)
        _scatter(cache, turned, slots, a.paged)
    for values, scale, cache in zip(a.values, value_scale, a.value_caches, strict=True):
        _scatter(cache, values if scale is None else _dequantised(values, scale, a.wide), slots, a.paged)


def _dequantised(memory: torch.Tensor, scale: torch.Tensor | None, wide: torch.dtype) -> torch.Tensor:
    return memory.to(wide) if scale is None else memory.to(wide) * scale


def _scatter(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, paged: bool) -> None:
    """Rows (kv_heads, K, head_dim) to a layer's cache."""
    rows = rows.to(cache.dtype)
    if paged:
        cache[slots // cache.shape[2], :, slots % cache.shape[2]] = rows.transpose(0, 1)
    else:
        cache.index_copy_(2, slots, rows.expand(len(cache), -1, -1, -1))
