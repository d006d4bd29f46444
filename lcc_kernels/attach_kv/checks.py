"""Attachments that are refused, and why."""

from __future__ import annotations

import torch

from .attachment import Attachment

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
QUANTISED = (torch.int8, torch.float8_e4m3fn)


def check(a: Attachment) -> None:
    """Refuse what shapes, strides, dtypes and devices tell, without reading a value.

    Raises:
        ValueError: naming the argument and what it should be.
    """
    _check_memory_tensors(a)
    _check_caches(a)
    _check_tables(a)
    _check_scales(a)
    if len({x.device for x in a.tensors}) > 1:
        raise ValueError(f"all tensors must be on one device; got {sorted({str(x.device) for x in a.tensors})}")
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
            f"keys and values must share a dtype, floating point, int8 or float8_e4m3fn; got {a.keys.dtype} and "
            f"{a.values.dtype}"
        )


def _check_caches(a: Attachment) -> None:
    layers, kv_heads, tokens, head_dim = a.keys.shape
    if not layers or len(a.key_caches) != layers or len(a.value_caches) != layers:
        raise ValueError(
            f"the memory has {layers} layers, and the caches {len(a.key_caches)} and {len(a.value_caches)}: "
            "they must have as many, and at least one"
        )
    first = a.key_caches[0]
    want = "(blocks, kv_heads, block_size, head_dim)" if a.paged else "(batch, kv_heads, max_len, head_dim)"
    for name, caches in (("key", a.key_caches), ("value", a.value_caches)):
        for cache in caches:
            if cache.ndim != 4 or cache.shape != first.shape or cache.dtype != first.dtype:
                raise ValueError(
                    f"the {name} cache of every layer must be {want}, all alike; got {tuple(cache.shape)} "
                    f"{cache.dtype} beside {tuple(first.shape)} {first.dtype}: attach unlike layers in separate calls"
                )
            if strides(cache) != strides(caches[0]):
                raise ValueError(
                    f"the {name} caches of all layers must share their strides; got {cache.stride()} beside "
                    f"{caches[0].stride()}: attach unlike layers in separate calls"
                )
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


def _check_tables(a: Attachment) -> None:
    tokens, head_dim = a.keys.shape[2:]
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
    layers, kv_heads, tokens, head_dim = a.keys.shape
    wanted = {"key_scale": (layers, kv_heads, head_dim), "value_scale": (layers, kv_heads, tokens)}
    for (name, shape), scale in zip(wanted.items(), (a.key_scale, a.value_scale), strict=True):
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
    caches = [*a.key_caches, *a.value_caches]
    if a.keys.numel() and len({cache.data_ptr() for cache in caches}) < len(caches):
        raise ValueError("two of the caches are the same memory: every layer needs its own, for keys and for values")


def check_values(a: Attachment) -> None:
    """Refuse bad slots, tables and scales, reading all of them at one time.

    Raises:
        ValueError: naming the first of them.
    """
    if not a.keys.numel():
        return
    ordered = a.slots.sort().values
    findings = {
        f"slots must lie in 0 ... {a.capacity - 1}, the cache's": (ordered[0] < 0) | (ordered[-1] >= a.capacity),
        "slots must not repeat: two tokens would be written to one row": (ordered[1:] == ordered[:-1]).any(),
        "cos and sin must be finite": ~(a.cos.isfinite().all() & a.sin.isfinite().all()),
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
