"""Attachment in one Triton launch: a program takes a block of tokens through a few heads of a layer.

The heads of a program share its rotary tables, which would otherwise be read as often as the memory itself. What lies
between memory and cache stays in registers, in float32.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of a kernel are pointers and scalars of Triton's language, which has no annotations for them.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch import interpreting
from .addresses import is_known, step, table
from .attachment import Attachment
from .checks import strides

WARPS = 4
PAIRS = 1024  # of channels in a block of tokens: a thread's eight make one 16-byte access in half precision
BUSY = 8  # programs a multiprocessor; heads are grouped only where there are more


def attach(a: Attachment) -> None:
    """Write every layer's keys and values to their slots, in one launch that reads every tensor by its own strides."""
    layers, heads, tokens, _ = a.shape
    if not a.keys.numel():
        return
    fixed = constants(a)
    blocks = triton.cdiv(tokens, fixed["TOKENS"])
    group = _group(heads, blocks * layers, a.keys.device)
    steps = _steps(a)
    scattered = None if steps else table(a.addresses, a.keys.device)
    no_strides = 0, 0, 0, 0
    key_scale, value_scale = a.scales or (None, None)
    with torch.cuda.device_of(a.keys):
        _attach[(blocks, triton.cdiv(heads, group), layers)](
            _readable(a.keys), _readable(a.values), a.key_caches[0], a.value_caches[0], *(steps or (0, 0)), scattered,
            a.slots, a.cos, a.sin, key_scale, value_scale,
            tokens, heads, group, a.copies, a.block_size, a.capacity, a.key_run,
            *a.keys.stride(), *a.values.stride(), *strides(a.key_caches[0]), *strides(a.value_caches[0]),
            a.slots.stride(0), *a.cos.stride(), *a.sin.stride(),
            *(no_strides if key_scale is None else key_scale.stride()),
            *(no_strides if value_scale is None else value_scale.stride()),
            **fixed, num_warps=WARPS,
        )  # fmt: skip


def refuses(a: Attachment) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if a.wide == torch.float64:
        return "it computes in float32; float64 runs on backend 'torch'"
    if a.packed and not a.interleaved and a.cos.shape[1] % 4:
        return "a byte of the memory holds the last channel of one half and the first of the other: use backend 'torch'"
    if interpreting() and a.keys.is_cuda:
        return "Triton's interpreter cannot follow addresses on a GPU: move the tensors to the CPU"
    if a.keys.is_cuda and torch.cuda.is_current_stream_capturing() and _needs_copy(a):
        return (
            "a CUDA graph cannot capture the copy of a table of scattered layers: attach to these caches once before "
            "capturing, or allocate the layers as one 5-D tensor"
        )
    return None


def constants(a: Attachment) -> dict:
    """What the kernel is compiled for."""
    return {
        "HEAD_DIM": a.shape[3],
        "ROTARY": a.cos.shape[1],
        "INTERLEAVED": a.interleaved,
        "PACKED": a.packed,
        "KEY_RUNS": a.key_run < a.shape[2],
        "VALUE_RUN": a.value_run,
        "ALIGNED": not any(address % 16 for address in a.addresses),
        "TOKENS": tokens(a.shape[3]),
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


def _steps(a: Attachment) -> tuple[int, int] | None:
    """From one layer to the next, of the key and of the value caches; None if some lie at uneven distances."""
    layers, itemsize = len(a.key_caches), a.key_caches[0].itemsize
    keys, values = step(a.addresses[:layers], itemsize), step(a.addresses[layers:], itemsize)
    return None if keys is None or values is None else (keys, values)


def _needs_copy(a: Attachment) -> bool:
    return _steps(a) is None and not is_known(a.addresses, a.keys.device)


@triton.jit
def _wide(x):
    """Numbers in float32; bytes are e4m3 numbers."""
    if x.dtype == tl.uint8:
        # As float16 an e4m3 number is 2 ** 8 too small; 0x7F, its NaN, has to be said.
        bits = x.to(tl.uint16)
        wide = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), wide)
    return x.to(tl.float32)


@triton.jit
def _load(pointer, rows, inside, channel, FIRST: tl.constexpr, COUNT: tl.constexpr, PACKED: tl.constexpr):
    """Channels FIRST ... FIRST + COUNT of ``rows`` (ROWS, 1) in float32, (ROWS, padded COUNT); two a byte if PACKED."""
    PADDED: tl.constexpr = triton.next_power_of_2(COUNT)
    if PACKED:
        columns = tl.arange(0, PADDED // 2)[None, :]
        places = rows + (columns + FIRST // 2).to(tl.int64) * channel
        x = tl.load(pointer + places, mask=inside & (columns < COUNT // 2), other=0).to(tl.int32)
        low, high = x << 28 >> 28, x << 24 >> 28
        return tl.reshape(tl.join(low, high), (rows.shape[0], PADDED)).to(tl.float32)
    columns = tl.arange(0, PADDED)[None, :]
    places = rows + (columns + FIRST).to(tl.int64) * channel
    return _wide(tl.load(pointer + places, mask=inside & (columns < COUNT), other=0))


@triton.jit
def _load_pairs(
    pointer, rows, inside, channel, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, PACKED: tl.constexpr
):  # fmt: skip
    """Both channels of every pair, (ROWS, padded ROTARY / 2) each."""
    if INTERLEAVED:
        x = _load(pointer, rows, inside, channel, 0, ROTARY, PACKED)
        left, right = tl.split(tl.reshape(x, (rows.shape[0], triton.next_power_of_2(ROTARY) // 2, 2)))
    else:
        left = _load(pointer, rows, inside, channel, 0, ROTARY // 2, PACKED)
        right = _load(pointer, rows, inside, channel, ROTARY // 2, ROTARY // 2, PACKED)
    return left, right


@triton.jit
def _load_factors(table, rows, inside, channel, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr):
    """A rotary table's entry of every pair, (ROWS, padded ROTARY / 2): the same for both of its channels."""
    if INTERLEAVED:
        factors, _ = _load_pairs(table, rows, inside, channel, ROTARY, INTERLEAVED, False)
    else:
        factors = _load(table, rows, inside, channel, 0, ROTARY // 2, False)
    return factors


@triton.jit
def _store(
    pointer, rows, inside, channel, x, copies, copy_stride, FIRST: tl.constexpr, COUNT: tl.constexpr
):  # fmt: skip
    """Channels FIRST ... FIRST + COUNT of ``rows``, in each of the copies."""
    columns = tl.arange(0, triton.next_power_of_2(COUNT))[None, :]
    places, inside = rows + (columns + FIRST).to(tl.int64) * channel, inside & (columns < COUNT)
    x = x.to(pointer.dtype.element_ty)
    for _ in range(copies):
        tl.store(pointer + places, x, mask=inside)
        pointer += copy_stride


@triton.jit
def _layer(first, layer_step, table, entry, layer, ALIGNED: tl.constexpr):
    """Where a layer's cache begins."""
    pointer = first + layer * layer_step if table is None else tl.load(table + entry).to(first.dtype)
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit(do_not_specialize=["tokens", "heads", "group", "copies", "capacity", "key_run"])
def _attach(
    keys, values, key_cache, value_cache, kc_layer, vc_layer, table, slots, cos, sin, key_scale, value_scale,
    tokens, heads, group, copies, block_size, capacity, key_run,
    k_layer, k_head, k_token, k_channel, v_layer, v_head, v_token, v_channel,
    kc_block, kc_head, kc_row, kc_channel, vc_block, vc_head, vc_row, vc_channel,
    slot_token, cos_token, cos_channel, sin_token, sin_channel,
    ks_layer, ks_head, ks_run, ks_channel, vs_layer, vs_head, vs_token, vs_run,
    HEAD_DIM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, PACKED: tl.constexpr,
    KEY_RUNS: tl.constexpr, VALUE_RUN: tl.constexpr, ALIGNED: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """keys and values (layers, heads, tokens, HEAD_DIM) to rows ``slots`` of every layer's caches."""
    layer, first = tl.program_id(2).to(tl.int64), tl.program_id(1) * group
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + token * slot_token, mask=token < tokens, other=-1).to(tl.int64)
    block, row = slot // block_size, slot % block_size
    key_rows, value_rows = (block * kc_block + row * kc_row)[:, None], (block * vc_block + row * vc_row)[:, None]
    rows, reading, inside = token[:, None], (token < tokens)[:, None], ((slot >= 0) & (slot < capacity))[:, None]
    key_target = _layer(key_cache, kc_layer, table, layer, layer, ALIGNED)
    value_target = _layer(value_cache, vc_layer, table, layer + tl.num_programs(2), layer, ALIGNED)
    cosine = _load_factors(cos, rows * cos_token, reading, cos_channel, ROTARY, INTERLEAVED)
    sine = _load_factors(sin, rows * sin_token, reading, sin_channel, ROTARY, INTERLEAVED)
    head = first.to(tl.int64)
    for _ in range(tl.minimum(group, heads - first)):
        # All of a head is read before any of it is written: the caches might be the memory, for all the compiler knows.
        source = keys + layer * k_layer + head * k_head
        left, right = _load_pairs(source, rows * k_token, reading, k_channel, ROTARY, INTERLEAVED, PACKED)
        if ROTARY < HEAD_DIM:
            rest = _load(source, rows * k_token, reading, k_channel, ROTARY, HEAD_DIM - ROTARY, PACKED)
        source = values + layer * v_layer + head * v_head
        value = _load(source, rows * v_token, reading, v_channel, 0, HEAD_DIM, PACKED)
        if key_scale is not None:
            scales = key_scale + layer * ks_layer + head * ks_head
            if KEY_RUNS:
                scale_rows, known = (rows.to(tl.int32) // key_run).to(tl.int64) * ks_run, reading
            else:
                scale_rows, known = tl.zeros((1, 1), tl.int64), tl.full((1, 1), True, tl.int1)
            left_scale, right_scale = _load_pairs(scales, scale_rows, known, ks_channel, ROTARY, INTERLEAVED, False)
            left, right = left * left_scale, right * right_scale
            if ROTARY < HEAD_DIM:
                rest *= _load(scales, scale_rows, known, ks_channel, ROTARY, HEAD_DIM - ROTARY, False)
        turned, right = left * cosine - right * sine, right * cosine + left * sine
        if value_scale is not None:
            scales = value_scale + layer * vs_layer + head * vs_head + rows * vs_token
            if VALUE_RUN < HEAD_DIM:
                runs = tl.arange(0, triton.next_power_of_2(HEAD_DIM))[None, :] // VALUE_RUN
                scales += tl.minimum(runs, (HEAD_DIM - 1) // VALUE_RUN).to(tl.int64) * vs_run
            value *= tl.load(scales, mask=reading, other=0).to(tl.float32)
        target = key_target + head * kc_head
        if INTERLEAVED:
            both = tl.reshape(tl.join(turned, right), (TOKENS, triton.next_power_of_2(ROTARY)))
            _store(target, key_rows, inside, kc_channel, both, copies, kc_block, 0, ROTARY)
        else:
            _store(target, key_rows, inside, kc_channel, turned, copies, kc_block, 0, ROTARY // 2)
            _store(target, key_rows, inside, kc_channel, right, copies, kc_block, ROTARY // 2, ROTARY // 2)
        if ROTARY < HEAD_DIM:
            _store(target, key_rows, inside, kc_channel, rest, copies, kc_block, ROTARY, HEAD_DIM - ROTARY)
        _store(value_target + head * vc_head, value_rows, inside, vc_channel, value, copies, vc_block, 0, HEAD_DIM)
        head += 1
