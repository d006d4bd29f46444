"""Memories, caches of every layout, and what attaching the one to the other must give."""

from __future__ import annotations

import torch

import lcc_kernels as lk
from lcc_kernels.attach_kv.attachment import Attachment
from lcc_kernels.dispatch import interpreting
from tests.support.float64 import assert_as_accurate

DEVICE = "cuda" if torch.cuda.is_available() and not interpreting() else "cpu"
BACKENDS = [name for name, missing in lk.available_backends("attach_kv").items() if missing is None]
BLANK = 7.0  # what the caches hold before, everywhere
MAX_LEN = 24
BLOCK_SIZE = 4


def _stacked(shape, dtype):
    layers, heads, head_dim = shape
    return torch.full((2, layers, 3, heads, MAX_LEN, head_dim), BLANK, dtype=dtype, device=DEVICE).unbind(0)


def _listed(shape, dtype):
    keys, values = _stacked(shape, dtype)
    return [x.clone() for x in keys], [x.clone() for x in values]


def _sliced(shape, dtype):
    """Tokens before heads, every second row, a margin beside the channels; values in another order than keys."""
    layers, heads, head_dim = shape
    store = torch.full((layers, 2, 2 * MAX_LEN, heads, head_dim + 3), BLANK, dtype=dtype, device=DEVICE)
    keys = store[:, :, ::2, :, 2 : head_dim + 2].transpose(2, 3)
    return keys, torch.full_like(keys, BLANK, memory_format=torch.contiguous_format)


def _channels_first(shape, dtype):
    layers, heads, head_dim = shape
    store = torch.full((2, layers, head_dim, heads, MAX_LEN, 1), BLANK, dtype=dtype, device=DEVICE)
    return store.permute(0, 1, 5, 3, 4, 2).unbind(0)


def _vllm(shape, dtype, order):
    """A layer of vLLM's is one allocation for keys and values, seen as (blocks, block_size, kv_heads, head_dim)."""
    layers, heads, head_dim = shape
    blocks, numel = MAX_LEN // BLOCK_SIZE, 2 * MAX_LEN * heads * head_dim
    allocations = [torch.full((numel,), BLANK, dtype=dtype, device=DEVICE) for _ in range(layers)]
    if order == "NHD":
        views = [x.view(2, blocks, BLOCK_SIZE, heads, head_dim).transpose(2, 3) for x in allocations]
    else:
        views = [x.view(2, blocks, heads, BLOCK_SIZE, head_dim) for x in allocations]
    return [x[0] for x in views], [x[1] for x in views]


LAYOUTS = {
    "stacked": _stacked,
    "listed": _listed,
    "sliced": _sliced,
    "channels_first": _channels_first,
    "paged_nhd": lambda shape, dtype: _vllm(shape, dtype, "NHD"),
    "paged_hnd": lambda shape, dtype: _vllm(shape, dtype, "HND"),
}


def tables(tokens, rotary_dim, interleaved, dtype=torch.float32):
    """cos and sin (tokens, rotary_dim) of scattered positions, with an attention scaling of 1.1."""
    angles = torch.randint(0, 9000, (tokens, 1)) * 10000.0 ** -torch.linspace(0, 1, rotary_dim // 2).double()
    angles = angles.repeat_interleave(2, 1) if interleaved else torch.cat((angles, angles), 1)
    return (1.1 * angles.cos()).to(DEVICE, dtype), (1.1 * angles.sin()).to(DEVICE, dtype)


def memory(layers, heads, tokens, head_dim, dtype):
    """keys, values, key_scale, value_scale; the scales are None for a float ``dtype``."""
    shape = 2, layers, heads, tokens, head_dim
    if dtype == torch.int8:
        pair = torch.randint(-128, 128, shape, dtype=dtype)
    else:
        pair = (torch.randn(shape) * (100 if dtype == torch.float8_e4m3fn else 1)).to(dtype)
    scales = [None, None]
    if dtype in (torch.int8, torch.float8_e4m3fn):
        scales = [0.001 + 0.03 * torch.rand(layers, heads, size, device=DEVICE) for size in (head_dim, tokens)]
    return *pair.to(DEVICE).unbind(0), *scales


def truth(keys, values, key_scale, value_scale, cos, sin, interleaved):
    """What must stand in the cache, (layers, kv_heads, K, head_dim) in float64: channel by channel, by the formula."""
    keys, values, cos, sin = (x.double() for x in (keys, values, cos, sin))
    if key_scale is not None:
        keys, values = keys * key_scale.double().unsqueeze(2), values * value_scale.double().unsqueeze(3)
    rotary_dim, half = cos.shape[1], cos.shape[1] // 2
    turned = keys.clone()
    for a in range(0, rotary_dim, 2) if interleaved else range(half):
        b = a + 1 if interleaved else a + half
        turned[..., a] = keys[..., a] * cos[:, a] - keys[..., b] * sin[:, a]
        turned[..., b] = keys[..., b] * cos[:, b] + keys[..., a] * sin[:, b]
    return turned, values


def rounded(exact, dtype):
    """What ``dtype`` makes of it; Triton's interpreter cuts bfloat16 off where a GPU rounds."""
    if interpreting() and dtype == torch.bfloat16:
        return (exact.float().view(torch.int32) & ~0xFFFF).view(torch.float32).to(dtype)
    return exact.to(dtype)


def rows(cache, paged):
    """A layer's cache as (copies, kv_heads, slots, head_dim)."""
    return cache.transpose(0, 1).flatten(1, 2)[None] if paged else cache


def check(
    backend,
    layout="stacked",
    memory_dtype=torch.float32,
    cache_dtype=torch.float32,
    shape=(3, 2, 11, 16),
    rotary_dim=None,
    interleaved=False,
    table_dtype=torch.float32,
    **options,
):
    """Attach a random memory of ``shape`` (layers, kv_heads, K, head_dim) and look at every row of the caches.

    ``backend`` is a name, or a function that runs an ``Attachment``.
    """
    layers, heads, tokens, head_dim = shape
    paged = layout.startswith("paged")
    keys, values, *scales = memory(*shape, memory_dtype)
    cos, sin = tables(tokens, rotary_dim or head_dim, interleaved, table_dtype)
    caches = LAYOUTS[layout]((layers, heads, head_dim), cache_dtype)
    slots = torch.randperm(MAX_LEN, device=DEVICE)[:tokens]
    if callable(backend):
        backend(Attachment(keys, values, *map(list, caches), slots, cos, sin, *scales, interleaved, paged), **options)
    else:
        options |= {"backend": backend, "interleaved": interleaved, "paged": paged}
        lk.attach_kv(keys, values, *caches, slots, cos, sin, *scales, **options)
    expected = truth(keys, values, *scales, cos, sin, interleaved)
    others = torch.ones(MAX_LEN, dtype=torch.bool, device=DEVICE).index_fill_(0, slots, False)
    floor = 1e-12 if cache_dtype == torch.float64 else 2e-6 * max(x.abs().max().item() for x in expected)
    for name, cache, wanted in zip(("keys", "values"), caches, expected, strict=True):
        for layer, exact in zip(cache, wanted, strict=True):
            all_rows = rows(layer, paged)
            assert (all_rows[:, :, others] == BLANK).all(), f"{name}: other rows were written"
            truths = exact.expand(len(all_rows), -1, -1, -1)
            assert_as_accurate(all_rows[:, :, slots], rounded(truths, cache_dtype), truths, floor, name)
