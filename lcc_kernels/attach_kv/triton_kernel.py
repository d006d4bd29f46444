"""Attachment in one Triton launch: a program takes a block of tokens through a few heads of a layer.

The heads of a program share its rotary tables, which would otherwise be read as often as the memory itself. What lies
between memory and cache stays in registers, in float32.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of a kernel are pointers and scalars of Triton's language, which has no annotations for them.

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl

from ..dispatch import interpreting
from .attachment import Attachment
from .checks import strides

WARPS = 4
PAIRS = 1024  # of channels in a block of tokens: a thread's eight make one 16-byte access in half precision
BUSY = 8  # programs a multiprocessor; heads are grouped only where there are more


def attach(a: Attachment) -> None:
    """Write every layer's keys and values to their slots."""
    layers, heads, tokens, head_dim = a.keys.shape
    if not a.keys.numel():
        return
    a = a.for_kernels()
    keys, values = _readable(a.keys), _readable(a.values)
    fixed = constants(head_dim, a.cos.shape[1], a.interleaved, a.keys.dtype, a.key_caches + a.value_caches)
    blocks = triton.cdiv(tokens, fixed["TOKENS"])
    group = _group(heads, blocks * layers, keys.device)
    with torch.cuda.device_of(keys):
        _attach[(blocks, triton.cdiv(heads, group), layers)](
            keys, values, a.key_caches[0], _table(a.key_caches), _table(a.value_caches), a.slots, a.cos, a.sin,
            a.key_scale, a.value_scale, tokens, heads, group, a.copies, a.block_size, a.capacity,
            *keys.stride()[:3], *values.stride()[:3], *strides(a.key_caches[0]), *strides(a.value_caches[0]),
            **fixed, num_warps=WARPS,
        )  # fmt: skip


def refuses(a: Attachment) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if a.wide == torch.float64:
        return "it computes in float32; float64 runs on backend 'torch'"
    if interpreting() and a.keys.is_cuda:
        return "Triton's interpreter cannot follow addresses on a GPU: move the tensors to the CPU"
    if a.keys.is_cuda and torch.cuda.is_current_stream_capturing() and not _evenly_spaced(a):
        return "a CUDA graph cannot capture a list of scattered layers: allocate them as one 5-D tensor"
    return None


def constants(head_dim, rotary_dim, interleaved, dtype, caches) -> dict:
    """What the kernel is compiled for, given the memory's dtype and all caches."""
    return {
        "HEAD_DIM": head_dim,
        "ROTARY": rotary_dim,
        "INTERLEAVED": interleaved,
        "SCALED": dtype in (torch.int8, torch.float8_e4m3fn),
        "ALIGNED": all(cache.data_ptr() % 16 == 0 for cache in caches),
        "TOKENS": tokens(head_dim),
    }


def tokens(head_dim: int) -> int:
    """Tokens of a block."""
    return max(2 * PAIRS // triton.next_power_of_2(head_dim), 1)


def _readable(memory: torch.Tensor) -> torch.Tensor:
    """e4m3 numbers as bytes, since not every GPU knows them."""
    return memory.view(torch.uint8) if memory.dtype == torch.float8_e4m3fn else memory


def _group(heads: int, programs: int, device: torch.device) -> int:
    """Heads of a program."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return min(max(heads * programs // (BUSY * processors), 1), heads)


def _steps(caches: list[torch.Tensor]) -> set[int]:
    return {after.data_ptr() - before.data_ptr() for before, after in pairwise(caches)}


def _evenly_spaced(a: Attachment) -> bool:
    return max(len(_steps(a.key_caches)), len(_steps(a.value_caches))) <= 1


def _table(caches: list[torch.Tensor]) -> torch.Tensor:
    """Where each layer's cache begins, (layers,) int64 on the device, which is not waited for."""
    steps, first, device = _steps(caches), caches[0].data_ptr(), caches[0].device
    if len(steps) <= 1:
        step = next(iter(steps), 1)
        return torch.arange(first, first + step * len(caches), step, device=device)
    return torch.tensor([cache.data_ptr() for cache in caches]).to(device, non_blocking=True)


@triton.jit
def _load(pointer, places, inside):
    """Numbers at ``places`` in float32; bytes are e4m3 numbers."""
    x = tl.load(pointer + places, mask=inside, other=0)
    if pointer.dtype.element_ty == tl.uint8:
        # As float16 an e4m3 number is 2 ** 8 too small; 0x7F, its NaN, has to be said.
        bits = x.to(tl.uint16)
        wide = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), wide)
    return x.to(tl.float32)


@triton.jit
def _load_pairs(pointer, rows, inside, ROWS: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both channels of every pair, (ROWS, padded ROTARY / 2) each; ``rows`` and ``inside`` are (ROWS, 1)."""
    HALF: tl.constexpr = triton.next_power_of_2(ROTARY // 2)
    if INTERLEAVED:
        columns = tl.arange(0, 2 * HALF)[None, :]
        x = _load(pointer, rows + columns, inside & (columns < ROTARY))
        left, right = tl.split(tl.reshape(x, (ROWS, HALF, 2)))
    else:
        columns = tl.arange(0, HALF)[None, :]
        inside = inside & (columns < ROTARY // 2)
        left = _load(pointer, rows + columns, inside)
        right = _load(pointer, rows + columns + ROTARY // 2, inside)
    return left, right


@triton.jit
def _store(pointer, places, x, inside, copies, copy_stride):
    x = x.to(pointer.dtype.element_ty)
    for _ in range(copies):
        tl.store(pointer + places, x, mask=inside)
        pointer += copy_stride


@triton.jit
def _store_pairs(
    pointer, rows, channel, left, right, inside, copies, copy_stride,
    ROWS: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = triton.next_power_of_2(ROTARY // 2)
    if INTERLEAVED:
        columns = tl.arange(0, 2 * HALF)[None, :]
        x = tl.reshape(tl.join(left, right), (ROWS, 2 * HALF))
        _store(pointer, rows + columns.to(tl.int64) * channel, x, inside & (columns < ROTARY), copies, copy_stride)
    else:
        columns = tl.arange(0, HALF)[None, :]
        inside = inside & (columns < ROTARY // 2)
        _store(pointer, rows + columns.to(tl.int64) * channel, left, inside, copies, copy_stride)
        _store(pointer, rows + (columns + ROTARY // 2).to(tl.int64) * channel, right, inside, copies, copy_stride)


@triton.jit
def _layer(table, layer, like, ALIGNED: tl.constexpr):
    """The layer's entry of a table of addresses, as a pointer like ``like``."""
    pointer = tl.load(table + layer).to(like.dtype)
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit(do_not_specialize=["tokens", "heads", "group", "copies", "capacity"])
def _attach(
    keys, values, like, key_table, value_table, slots, cos, sin, key_scale, value_scale,
    tokens, heads, group, copies, block_size, capacity,
    k_layer, k_head, k_token, v_layer, v_head, v_token,
    kc_block, kc_head, kc_row, kc_channel, vc_block, vc_head, vc_row, vc_channel,
    HEAD_DIM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, SCALED: tl.constexpr,
    ALIGNED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """keys and values (layers, heads, tokens, HEAD_DIM) to rows ``slots`` of every layer's caches."""
    layer, first = tl.program_id(2).to(tl.int64), tl.program_id(1) * group
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + token, mask=token < tokens, other=-1)
    block, row = slot // block_size, slot % block_size
    key_rows, value_rows = (block * kc_block + row * kc_row)[:, None], (block * vc_block + row * vc_row)[:, None]
    known, inside = token < tokens, ((slot >= 0) & (slot < capacity))[:, None]
    rows, reading = token[:, None], known[:, None]
    key_cache, value_cache = _layer(key_table, layer, like, ALIGNED), _layer(value_table, layer, like, ALIGNED)
    cos_left, cos_right = _load_pairs(cos, rows * ROTARY, reading, TOKENS, ROTARY, INTERLEAVED)
    sin_left, sin_right = _load_pairs(sin, rows * ROTARY, reading, TOKENS, ROTARY, INTERLEAVED)
    head = first.to(tl.int64)
    for _ in range(tl.minimum(group, heads - first)):
        source = keys + layer * k_layer + head * k_head
        target = key_cache + head * kc_head
        left, right = _load_pairs(source, rows * k_token, reading, TOKENS, ROTARY, INTERLEAVED)
        scales = key_scale
        if SCALED:
            scales += (layer * heads + head) * HEAD_DIM
            always = tl.full((1, 1), True, tl.int1)
            left_scale, right_scale = _load_pairs(scales, tl.zeros((1, 1), tl.int64), always, 1, ROTARY, INTERLEAVED)
            left, right = left * left_scale, right * right_scale
        turned_left, turned_right = left * cos_left - right * sin_left, right * cos_right + left * sin_right
        _store_pairs(
            target, key_rows, kc_channel, turned_left, turned_right, inside, copies, kc_block,
            TOKENS, ROTARY, INTERLEAVED,
        )  # fmt: skip
        if ROTARY < HEAD_DIM:
            columns = ROTARY + tl.arange(0, triton.next_power_of_2(HEAD_DIM - ROTARY))[None, :]
            rest = _load(source, rows * k_token + columns, reading & (columns < HEAD_DIM))
            if SCALED:
                rest *= tl.load(scales + columns, mask=columns < HEAD_DIM, other=0.0)
            places = key_rows + columns.to(tl.int64) * kc_channel
            _store(target, places, rest, inside & (columns < HEAD_DIM), copies, kc_block)
        columns = tl.arange(0, triton.next_power_of_2(HEAD_DIM))[None, :]
        source = values + layer * v_layer + head * v_head
        value = _load(source, rows * v_token + columns, reading & (columns < HEAD_DIM))
        if SCALED:
            value *= tl.load(value_scale + (layer * heads + head) * tokens + token, mask=known, other=0.0)[:, None]
        places = value_rows + columns.to(tl.int64) * vc_channel
        _store(value_cache + head * vc_head, places, value, inside & (columns < HEAD_DIM), copies, vc_block)
        head += 1
