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


def laid_out(x, order, gap=0):
    """``x`` with its dimensions in this ``order`` in memory, and a ``gap`` after each run of the last of them."""
    *sizes, last = (x.shape[dim] for dim in order)
    store = x.new_empty(*sizes, last + gap)[..., :last]
    return store.permute([order.index(dim) for dim in range(x.ndim)]).copy_(x)


def _blank(shape, dtype, order, gap=0):
    return laid_out(torch.full(shape, BLANK, dtype=dtype, device=DEVICE), order, gap)


def _stacked(shape, dtype):
    """Values have room for more rows, and tokens before heads."""
    layers, heads, head_dim = shape
    full = layers, 3, heads, MAX_LEN, head_dim
    return _blank(full, dtype, (0, 1, 2, 3, 4)), _blank(full, dtype, (0, 1, 3, 2, 4), gap=16)


def _listed(shape, dtype):
    layers, heads, head_dim = shape
    one = 3, heads, MAX_LEN, head_dim
    return [[_blank(one, dtype, order) for _ in range(layers)] for order in ((0, 1, 2, 3), (2, 0, 1, 3))]


def _sliced(shape, dtype):
    """Tokens before heads, every second row, a margin beside the channels; values in another order than keys."""
    layers, heads, head_dim = shape
    store = torch.full((layers, 2, 2 * MAX_LEN, heads, head_dim + 3), BLANK, dtype=dtype, device=DEVICE)
    keys = store[:, :, ::2, :, 2 : head_dim + 2].transpose(2, 3)
    return keys, torch.full_like(keys, BLANK, memory_format=torch.contiguous_format)


def _channels_first(shape, dtype):
    layers, heads, head_dim = shape
    full = layers, 1, heads, MAX_LEN, head_dim
    return _blank(full, dtype, (0, 4, 2, 3, 1)), _blank(full, dtype, (0, 2, 4, 3, 1))


def _vllm(shape, dtype, orders):
    """A layer's keys and values are one allocation, (blocks, block_size, kv_heads, head_dim) or heads first each."""
    layers, heads, head_dim = shape
    blocks = MAX_LEN // BLOCK_SIZE
    views = []
    for _ in range(layers):
        halves = torch.full((2, MAX_LEN * heads * head_dim), BLANK, dtype=dtype, device=DEVICE)
        nhd, hnd = (blocks, BLOCK_SIZE, heads, head_dim), (blocks, heads, BLOCK_SIZE, head_dim)
        pair = zip(halves, orders, strict=True)
        views.append([x.view(nhd).transpose(1, 2) if order == "NHD" else x.view(hnd) for x, order in pair])
    return [list(side) for side in zip(*views, strict=True)]


LAYOUTS = {
    "stacked": _stacked,
    "listed": _listed,
    "sliced": _sliced,
    "channels_first": _channels_first,
    "paged_nhd": lambda shape, dtype: _vllm(shape, dtype, ("NHD", "HND")),
    "paged_hnd": lambda shape, dtype: _vllm(shape, dtype, ("HND", "NHD")),
}


def tables(tokens, rotary_dim, interleaved, dtype=torch.float32):
    """cos and sin (tokens, rotary_dim) of scattered positions, with an attention scaling of 1.1; strides differ."""
    angles = torch.randint(0, 9000, (tokens, 1)) * 10000.0 ** -torch.linspace(0, 1, rotary_dim // 2).double()
    angles = angles.repeat_interleave(2, 1) if interleaved else torch.cat((angles, angles), 1)
    cos, sin = ((1.1 * x).to(DEVICE, dtype) for x in (angles.cos(), angles.sin()))
    return laid_out(cos, (0, 1), gap=16), laid_out(sin, (0, 1), gap=32)


def memory(layers, heads, tokens, head_dim, dtype, key_group=None, value_groups=None):
    """keys, values, key_scale, value_scale, no two of the same strides; the scales are None for a float ``dtype``."""
    shape = 2, layers, heads, tokens, head_dim
    if dtype == torch.uint8:
        pair = lk.pack_int4(torch.randint(-8, 8, shape, dtype=torch.int8))
    elif dtype == torch.int8:
        pair = torch.randint(-128, 128, shape, dtype=dtype)
    else:
        pair = (torch.randn(shape) * (100 if dtype == torch.float8_e4m3fn else 1)).to(dtype)
    keys, values = pair.to(DEVICE)
    scales = [None, None]
    if not dtype.is_floating_point or dtype == torch.float8_e4m3fn:
        groups = -(-tokens // key_group) if key_group else 1, value_groups or 1
        sizes = (groups[0], head_dim), (tokens, groups[1])
        scales = [0.001 + 0.03 * torch.rand(layers, heads, *size, device=DEVICE) for size in sizes]
        scales = [laid_out(scales[0], (1, 2, 0, 3), gap=16), laid_out(scales[1], (3, 0, 2, 1), gap=1)]
        scales = [scales[0] if key_group else scales[0][:, :, 0], scales[1] if value_groups else scales[1][..., 0]]
    return laid_out(keys, (0, 1, 2, 3), gap=16), laid_out(values, (0, 2, 1, 3), gap=32), *scales


def _nibbles(packed):
    """Both halves of every byte, the low one first, as the signed numbers that they are."""
    signed = torch.tensor([*range(8), *range(-8, 0)], device=packed.device)
    return torch.stack([signed[x.long()] for x in (packed % 16, packed // 16)], dim=-1).flatten(-2)


def _dequantised(keys, values, key_scale, value_scale, key_group):
    """Every number times its scale, looked up one by one."""
    if key_scale is None:
        return keys, values
    tokens, head_dim = keys.shape[2:]
    of_token = [token // (key_group or tokens) for token in range(tokens)]
    key_scale = (key_scale if key_group else key_scale[:, :, None])[:, :, of_token]
    value_scale = value_scale if value_scale.ndim == 4 else value_scale[..., None]
    of_channel = [channel * value_scale.shape[3] // head_dim for channel in range(head_dim)]
    return keys * key_scale.double(), values * value_scale[..., of_channel].double()


def truth(keys, values, key_scale, value_scale, cos, sin, interleaved, key_group=None):
    """What must stand in the cache, (layers, kv_heads, K, head_dim) in float64: channel by channel, by the formula."""
    if keys.dtype == torch.uint8:
        keys, values = _nibbles(keys), _nibbles(values)
    keys, values, cos, sin = (x.double() for x in (keys, values, cos, sin))
    keys, values = _dequantised(keys, values, key_scale, value_scale, key_group)
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


def attach(backend, *arguments, key_group=None, **options):
    """Attach by these ``arguments`` of an ``Attachment``; ``backend`` is a name, or a function that takes one."""
    keys, values, key_cache, value_cache, *others, interleaved, paged = arguments
    if callable(backend):
        caches = list(key_cache), list(value_cache)
        attachment = Attachment(keys, values, *caches, *others, interleaved, paged, key_group)
        backend(attachment, **options)
    else:
        options |= {"backend": backend, "interleaved": interleaved, "paged": paged, "key_group": key_group}
        lk.attach_kv(keys, values, key_cache, value_cache, *others, **options)


def check(
    backend,
    layout="stacked",
    memory_dtype=torch.float32,
    cache_dtype=torch.float32,
    shape=(3, 2, 11, 16),
    rotary_dim=None,
    interleaved=False,
    table_dtype=torch.float32,
    key_group=None,
    value_groups=None,
    **options,
):
    """Attach a random memory of ``shape`` (layers, kv_heads, K, head_dim) and look at every row of the caches."""
    layers, heads, tokens, head_dim = shape
    paged = layout.startswith("paged")
    keys, values, *scales = memory(*shape, memory_dtype, key_group, value_groups)
    cos, sin = tables(tokens, rotary_dim or head_dim, interleaved, table_dtype)
    caches = LAYOUTS[layout]((layers, heads, head_dim), cache_dtype)
    slots = laid_out(torch.randperm(MAX_LEN, device=DEVICE)[:tokens, None], (0, 1), gap=1)[:, 0]
    attach(backend, keys, values, *caches, slots, cos, sin, *scales, interleaved, paged, key_group=key_group, **options)
    expected = truth(keys, values, *scales, cos, sin, interleaved, key_group)
    others = torch.ones(MAX_LEN, dtype=torch.bool, device=DEVICE).index_fill_(0, slots, False)
    floor = 1e-12 if cache_dtype == torch.float64 else 2e-6 * max(x.abs().max().item() for x in expected)
    for name, cache, wanted in zip(("keys", "values"), caches, expected, strict=True):
        for layer, exact in zip(cache, wanted, strict=True):
            all_rows = rows(layer, paged)
            assert (all_rows[:, :, others] == BLANK).all(), f"{name}: other rows were written"
            truths = exact.expand(len(all_rows), -1, -1, -1)
            assert_as_accurate(all_rows[:, :, slots], rounded(truths, cache_dtype), truths, floor, name)


def check_foreign_slots(backend, slots, paged, **options):
    """Slots outside a cache of five blocks of four rows are skipped: what lies around it in memory stays as it was."""
    keys, values = torch.randn(2, 1, 2, len(slots), 8, device=DEVICE)
    store = torch.zeros(2, 1, 9, 2, 4, 8, device=DEVICE)
    caches, where = store[:, :, 2:7], torch.tensor(slots, device=DEVICE)
    attach(backend, keys, values, *caches, where, *tables(len(slots), 8, False), None, None, False, paged, **options)
    good = [(token, slot) for token, slot in enumerate(slots) if 0 <= slot < (20 if paged else 4)]
    assert 0 < len(good) < len(slots)
    for side in store:
        assert side.count_nonzero() == 16 * len(good) * (1 if paged else 5)
    for token, slot in good:
        assert torch.equal(rows(caches[1, 0], paged)[:, :, slot], values[:, :, token].expand(1 if paged else 5, 2, 8))
