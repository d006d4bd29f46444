"""Attachments that are refused, and why."""

from __future__ import annotations

import torch

from ..rotary import pair_entries
from .attachment import Attachment

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTISED = (torch.int8, torch.float8_e4m3fn, torch.uint8)


def check(a: Attachment, stacked: bool = False) -> None:
    """Refuse what shapes, strides, dtypes and devices tell, without reading a value.

    Args:
        a: what is asked for.
        stacked: the caches of a side are the layers of one tensor, and therefore alike.

    Raises:
        ValueError: naming the argument and what it should be.
    """
    _check_memory_tensors(a)
    _check_caches(a, stacked)
    _check_tables(a)
    _check_scales(a)
    devices = {x.device for x in (*a.inputs, a.key_caches[0])}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device; got {sorted(map(str, devices))}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in a.tensors):
        raise ValueError("attach_kv gives no gradient: detach what requires one, or call it under torch.no_grad()")


def _check_memory_tensors(a: Attachment) -> None:
    if a.keys.ndim != 4 or a.keys.shape != a.values.shape:
        raise ValueError(
            "keys and values must both be (layers, kv_heads, K, head_dim); "
            f"got {tuple(a.keys.shape)} and {tuple(a.values.shape)}"
        )
    if a.keys.dtype != a.values.dtype or a.keys.dtype not in (*FLOATS, *QUANTISED):
        raise ValueError(
            "keys and values must share a dtype, floating point, int8, float8_e4m3fn or uint8 of pack_int4; "
            f"got {a.keys.dtype} and {a.values.dtype}"
        )


def _check_caches(a: Attachment, stacked: bool) -> None:
    layers, kv_heads, tokens, head_dim = a.shape
    if not layers or len(a.key_caches) != layers or len(a.value_caches) != layers:
        raise ValueError(
            f"the memory has {layers} layers, and the caches {len(a.key_caches)} and {len(a.value_caches)}: "
            "they must have as many, and at least one"
        )
    first = a.key_caches[0]
    want = "(blocks, kv_heads, block_size, head_dim)" if a.paged else "(batch, kv_heads, max_len, head_dim)"
    for name, caches in (("key", a.key_caches), ("value", a.value_caches)):
        for cache in caches[:1] if stacked else (caches[0], *_unlike(caches)):
            _check_layer(name, cache, caches[0], first, want)
        if _overlaps_itself(caches[0]):
            raise ValueError(
                f"the {name} cache of shape {tuple(caches[0].shape)} and strides {caches[0].stride()} overlaps itself "
                "(an expanded tensor?): give it memory of its own with contiguous()"
            )
    if first.dtype not in FLOATS:
        raise ValueError(f"caches must be float16, bfloat16, float32 or float64; got {first.dtype}")
    if (first.shape[1], first.shape[3]) != (kv_heads, head_dim):
        raise ValueError(
            f"the memory has {kv_heads} kv_heads of head_dim {head_dim}, and a layer's cache {want} is "
            f"{tuple(first.shape)}: it belongs to another model, or its dimensions are in another order"
        )
    if tokens > a.capacity:
        raise ValueError(f"the cache is too small: it has {a.capacity} slots, and the memory {tokens} tokens")


def _unlike(caches: list[torch.Tensor]) -> list[torch.Tensor]:
    """The layers that are not what the first is to the letter: the others need no second look."""
    shape, stride, dtype, device = caches[0].shape, caches[0].stride(), caches[0].dtype, caches[0].device
    return [x for x in caches if x.shape != shape or x.stride() != stride or x.dtype != dtype or x.device != device]


def _check_layer(name: str, cache: torch.Tensor, like: torch.Tensor, first: torch.Tensor, want: str) -> None:
    """A layer's cache beside that of the first layer, ``like``, and the first of all."""
    if cache.ndim != 4 or cache.shape != first.shape or cache.dtype != first.dtype:
        raise ValueError(
            f"the {name} cache of every layer must be {want}, all alike; got {tuple(cache.shape)} "
            f"{cache.dtype} beside {tuple(first.shape)} {first.dtype}: attach unlike layers in separate calls"
        )
    if strides(cache) != strides(like):
        raise ValueError(
            f"the {name} caches of all layers must share their strides; got {cache.stride()} beside "
            f"{like.stride()}: attach unlike layers in separate calls"
        )
    if cache.device != first.device:
        raise ValueError(f"all caches must be on one device; got {cache.device} beside {first.device}")


def _check_tables(a: Attachment) -> None:
    tokens, head_dim = a.shape[2:]
    if a.slots.shape != (tokens,) or a.slots.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"slots must be ({tokens},) int32 or int64; got {tuple(a.slots.shape)} {a.slots.dtype}")
    if a.cos.ndim != 2 or a.cos.shape != a.sin.shape or len(a.cos) != tokens:
        raise ValueError(
            f"cos and sin must both be ({tokens}, rotary_dim), without a batch dimension; got {tuple(a.cos.shape)} and "
            f"{tuple(a.sin.shape)}"
        )
    rotary_dim = a.cos.shape[1]
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise ValueError(f"rotary_dim must be even, from 2 to head_dim {head_dim}; cos and sin have {rotary_dim}")
    if a.cos.dtype != a.sin.dtype or a.cos.dtype not in FLOATS:
        raise ValueError(f"cos and sin must share a floating dtype; got {a.cos.dtype} and {a.sin.dtype}")


def _check_scales(a: Attachment) -> None:
    *heads, tokens, head_dim = a.shape
    keys, values = (*heads, head_dim), (*heads, tokens)
    if a.key_group is not None:
        if a.key_group < 1 or a.keys.dtype in FLOATS:
            raise ValueError(f"key_group must be at least 1, and None without scales; got {a.key_group}")
        keys = (*heads, -(-tokens // a.key_group), head_dim)
    if a.value_scale is not None and a.value_scale.ndim == 4:
        values = (*heads, tokens, a.value_scale.shape[3])
        if not values[3] or head_dim % values[3]:
            raise ValueError(f"value_scale has {values[3]} groups of channels: they must divide head_dim {head_dim}")
    for name, shape, scale in (("key_scale", keys, a.key_scale), ("value_scale", values, a.value_scale)):
        if a.keys.dtype in FLOATS:
            if scale is not None:
                raise ValueError(f"{name} is given, but a {a.keys.dtype} memory is kept as it is: leave it out")
        elif scale is None:
            raise ValueError(f"a {a.keys.dtype} memory needs {name}, {shape}")
        elif scale.shape != shape or scale.dtype not in FLOATS:
            raise ValueError(f"{name} must be {shape} in floating point; got {tuple(scale.shape)} {scale.dtype}")


def check_memory(a: Attachment) -> None:
    """Refuse caches that are one memory under two names; not for tensors that are only traced.

    Raises:
        ValueError: two layers, or the key and the value cache, begin at one address.
    """
    if a.keys.numel() and len(set(a.addresses)) < len(a.addresses):
        raise ValueError("two of the caches are the same memory: every layer needs its own, for keys and for values")


def check_values(a: Attachment) -> None:
    """Refuse bad slots, tables and scales, reading all of them at one time.

    Raises:
        ValueError: naming the first of them.
    """
    if not a.keys.numel():
        return
    ordered = a.slots.sort().values
    left, right = pair_entries(torch.stack((a.cos, a.sin)), a.interleaved)
    pair = 0, 1 if a.interleaved else left.shape[-1]
    findings = {
        f"slots must lie in 0 ... {a.capacity - 1}, the cache's": (ordered[0] < 0) | (ordered[-1] >= a.capacity),
        "slots must not repeat: two tokens would be written to one row": (ordered[1:] == ordered[:-1]).any(),
        "cos and sin must be finite": ~(a.cos.isfinite().all() & a.sin.isfinite().all()),
        f"cos and sin must agree on the channels of a pair, as of {pair}: is interleaved={not a.interleaved} meant?": (
            ((left - right).abs() > 0.02).any()  # more than a rounding of equal angles
        ),
    }
    for name, scale in (("key_scale", a.key_scale), ("value_scale", a.value_scale)):
        if scale is not None:
            findings[f"{name} must be finite and > 0 everywhere"] = ~((scale > 0) & scale.isfinite()).all()
    for message, failed in zip(findings, torch.stack(list(findings.values())).tolist(), strict=True):
        if failed:
            raise ValueError(message)


def strides(cache: torch.Tensor) -> tuple[int, ...]:
    """Strides, 0 along dimensions of one element, where any would do."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(cache.shape, cache.stride(), strict=True))


def _overlaps_itself(cache: torch.Tensor) -> bool:
    reach = 0
    for stride, size in sorted((stride, size) for size, stride in zip(cache.shape, cache.stride(), strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
