"""Attachment in torch, a layer at a time, so that what lies between memory and cache stays in the processor's cache."""

from __future__ import annotations

import torch

from .attachment import Attachment
from .int4 import unpack_int4


def attach(a: Attachment) -> None:
    """Write every layer's keys and values to their slots."""
    cos, sin, rows = a.cos.to(a.wide), a.sin.to(a.wide), _rows(a)
    key_scale, value_scale = a.factors or ([None] * len(a.keys),) * 2
    for keys, scale, cache in zip(a.keys, key_scale, a.key_caches, strict=True):
        turned = _rotated(_dequantised(keys, scale, a.wide), cos, sin, a.interleaved)
        _write(cache, rows, turned, a.paged)
    for values, scale, cache in zip(a.values, value_scale, a.value_caches, strict=True):
        _write(cache, rows, values if scale is None else _dequantised(values, scale, a.wide), a.paged)


def _rows(a: Attachment) -> tuple[torch.Tensor | slice, ...]:
    """The index of the tokens' rows in a layer's cache; consecutive ones are a slice, where reading slots is free."""
    slots, everything = a.slots.long(), slice(None)
    if a.paged:
        return slots // a.block_size, everything, slots % a.block_size
    if slots.device.type == "cpu" and len(slots) and slots[0] >= 0 and bool((slots.diff() == 1).all()):
        return everything, everything, slice(int(slots[0]), int(slots[-1]) + 1)
    return everything, everything, slots


def _dequantised(memory: torch.Tensor, scale: torch.Tensor | None, wide: torch.dtype) -> torch.Tensor:
    if scale is None:
        return memory.to(wide)
    if memory.dtype == torch.uint8:
        return unpack_int4(memory).to(wide).mul_(scale)
    if memory.dtype == torch.float8_e4m3fn:
        return _from_table(memory, wide).mul_(scale)
    return memory.to(wide).mul_(scale)


def _from_table(memory: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """e4m3 numbers looked up among all 256: on a CPU torch converts them five times as slowly."""
    numbers = torch.arange(256, dtype=torch.uint8, device=memory.device).view(memory.dtype).to(wide)
    return numbers.index_select(0, memory.view(torch.uint8).int().flatten()).view(memory.shape)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """``apply_rotary`` with one temporary; x is (kv_heads, K, head_dim)."""
    rotary_dim = cos.shape[1]
    left, right = slice(0, rotary_dim // 2), slice(rotary_dim // 2, rotary_dim)
    if interleaved:
        left, right = slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
    out = x.clone()
    out[..., :rotary_dim] *= cos
    out[..., left].addcmul_(x[..., right], sin[:, left], value=-1)
    out[..., right].addcmul_(x[..., left], sin[:, right])
    return out


def _write(cache: torch.Tensor, rows: tuple, memory: torch.Tensor, paged: bool) -> None:
    """Memory (kv_heads, K, head_dim) to its rows in a layer's cache."""
    cache[rows] = (memory.transpose(0, 1) if paged else memory).to(cache.dtype)
