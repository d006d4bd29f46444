"""The op as torch sees it, and every argument that it refuses."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch

import lcc_kernels as lk

from .attach_cases import tables

LAYERS, HEADS, TOKENS, HEAD_DIM, MAX_LEN = 2, 3, 4, 8, 6


def arguments(quantised=False, **changes):
    """Good arguments of ``attach_kv`` by name, with ``changes``."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, LAYERS, HEADS, TOKENS, HEAD_DIM)
    caches = torch.zeros(2, LAYERS, 2, HEADS, MAX_LEN, HEAD_DIM)
    cos, sin = tables(TOKENS, HEAD_DIM, False)
    good = {
        "keys": keys, "values": values, "key_cache": caches[0], "value_cache": caches[1],
        "slots": torch.tensor([5, 1, 0, 2]), "cos": cos.cpu(), "sin": sin.cpu(),
    }  # fmt: skip
    if quantised:
        good |= {"keys": keys.to(torch.int8), "values": values.to(torch.int8)}
        good |= {"key_scale": torch.ones(LAYERS, HEADS, HEAD_DIM), "value_scale": torch.ones(LAYERS, HEADS, TOKENS)}
    return good | changes


def with_value(shape, value):
    """Ones, but for one entry."""
    tensor = torch.ones(shape)
    tensor.view(-1)[-1] = value
    return tensor


MEMORY = LAYERS, HEADS, TOKENS, HEAD_DIM
CACHE = LAYERS, 2, HEADS, MAX_LEN, HEAD_DIM
SHAPES = [
    ({"keys": torch.zeros(MEMORY[1:])}, r"must both be \(layers, kv_heads, K, head_dim\)"),
    ({"values": torch.zeros(LAYERS, HEADS, TOKENS + 1, HEAD_DIM)}, "must both be"),
    ({"values": torch.zeros(MEMORY).half()}, "share a dtype"),
    ({"keys": torch.zeros(MEMORY).int(), "values": torch.zeros(MEMORY).int()}, "share a dtype, floating point, int8"),
    ({"key_cache": torch.zeros(CACHE)[:1]}, "memory has 2 layers, and the caches 1 and 2"),
    ({"value_cache": []}, "memory has 2 layers, and the caches 2 and 0"),
    ({"keys": torch.zeros(0, 1, 1, 2), "values": torch.zeros(0, 1, 1, 2), "key_cache": [], "value_cache": []},
     "at least one"),
    ({"key_cache": torch.zeros(2, 2, HEADS, MAX_LEN)}, "key cache of every layer must be"),
    ({"value_cache": torch.zeros(CACHE).bfloat16()}, "value cache of every layer must be .* all alike"),
    ({"key_cache": [torch.zeros(CACHE[1:]), torch.zeros(2, HEADS, 9, HEAD_DIM)]}, r"alike; got \(2, 3, 9, 8\)"),
    ({"key_cache": [torch.zeros(CACHE[1:]), torch.zeros(2, MAX_LEN, HEADS, HEAD_DIM).transpose(1, 2)]},
     "share their strides"),
    ({"key_cache": torch.zeros(LAYERS, 1, *CACHE[2:]).expand(CACHE)}, "overlaps itself"),
    ({"value_cache": torch.zeros(999).as_strided(CACHE, (300, 150, 48, 7, 1))}, "value cache .* overlaps itself"),
    ({"key_cache": torch.zeros(CACHE).to(torch.int8), "value_cache": torch.zeros(CACHE).to(torch.int8)},
     "caches must be float16"),
    ({"key_cache": torch.zeros(2, 2, 4, MAX_LEN, HEAD_DIM), "value_cache": torch.zeros(2, 2, 4, MAX_LEN, HEAD_DIM)},
     r"memory has 3 kv_heads of head_dim 8, .* another model"),
    ({"key_cache": torch.zeros(2, 2, HEADS, MAX_LEN, 9), "value_cache": torch.zeros(2, 2, HEADS, MAX_LEN, 9)},
     "head_dim 8"),
    ({"key_cache": torch.zeros(2, 2, HEADS, 3, 8), "value_cache": torch.zeros(2, 2, HEADS, 3, 8)},
     "too small: it has 3 slots, and the memory 4 tokens"),
    ({"slots": torch.arange(TOKENS + 1)}, r"slots must be \(4,\)"),
    ({"slots": torch.arange(TOKENS).float()}, r"slots must be \(4,\) int32 or int64"),
    ({"cos": torch.ones(1, TOKENS, HEAD_DIM), "sin": torch.ones(1, TOKENS, HEAD_DIM)}, "without a batch dimension"),
    ({"cos": torch.ones(TOKENS - 1, 8), "sin": torch.ones(TOKENS - 1, 8)}, r"cos and sin must both be \(4, rotary_dim"),
    ({"sin": torch.ones(TOKENS, 6)}, "cos and sin must both be"),
    ({"cos": torch.ones(TOKENS, 10), "sin": torch.ones(TOKENS, 10)}, "rotary_dim must be even, from 2 to head_dim 8"),
    ({"cos": torch.ones(TOKENS, 5), "sin": torch.ones(TOKENS, 5)}, "rotary_dim must be even"),
    ({"cos": torch.ones(TOKENS, 0), "sin": torch.ones(TOKENS, 0)}, "rotary_dim must be even"),
    ({"cos": torch.ones(TOKENS, 8).long(), "sin": torch.ones(TOKENS, 8).long()}, "floating dtype"),
    ({"key_scale": torch.ones(LAYERS, HEADS, HEAD_DIM)}, "key_scale is given, but a torch.float32 memory"),
    ({"value_scale": torch.ones(LAYERS, HEADS, TOKENS)}, "value_scale is given"),
    ({"slots": torch.empty(TOKENS, dtype=torch.long, device="meta")}, "on one device"),
    ({"keys": torch.zeros(MEMORY, requires_grad=True)}, "gives no gradient: detach"),
]  # fmt: skip
VALUES = [
    ({"slots": torch.tensor([0, 1, 2, MAX_LEN])}, r"slots must lie in 0 ... 5"),
    ({"slots": torch.tensor([0, -1, 2, 3])}, r"slots must lie in"),
    ({"slots": torch.tensor([3, 1, 2, 3])}, "must not repeat"),
    ({"cos": with_value((TOKENS, 8), torch.nan)}, "cos and sin must be finite"),
    ({"sin": with_value((TOKENS, 8), torch.inf)}, "cos and sin must be finite"),
    ({"sin": with_value((TOKENS, 8), 0.9)}, r"as of \(0, 4\): is interleaved=True meant"),
    (
        {"cos": torch.tensor([1.0, 2.0]).repeat(TOKENS, 4), "interleaved": True},
        r"as of \(0, 1\): is interleaved=False",
    ),
]
SCALES = [
    *(({"key_scale": with_value((LAYERS, HEADS, HEAD_DIM), x)}, "key_scale must be finite and > 0")
      for x in (0.0, -1.0, torch.nan, torch.inf)),
    *(({"value_scale": with_value((LAYERS, HEADS, TOKENS), x)}, "value_scale must be finite and > 0")
      for x in (0.0, -1.0, torch.nan, torch.inf)),
    ({"key_scale": None}, r"a torch.int8 memory needs key_scale, \(2, 3, 8\)"),
    ({"value_scale": None}, r"a torch.int8 memory needs value_scale, \(2, 3, 4\)"),
    ({"key_scale": torch.ones(LAYERS, HEADS, TOKENS)}, r"key_scale must be \(2, 3, 8\)"),
    ({"value_scale": torch.ones(LAYERS, HEADS, TOKENS).int()}, "in floating point"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), [*SHAPES, *VALUES])
def test_refuses(changes, message):
    call = arguments(**changes)
    with pytest.raises(ValueError, match=message):
        lk.attach_kv(**call)
    assert all((cache == 0).all() for name in ("key_cache", "value_cache") for cache in call[name])


@pytest.mark.parametrize(("changes", "message"), SCALES)
def test_refuses_scales(changes, message):
    call = arguments(quantised=True, **changes)
    with pytest.raises(ValueError, match=message):
        lk.attach_kv(**call)
    assert not call["key_cache"].any()


def test_refuses_one_memory_for_two_caches():
    cache = torch.zeros(CACHE[1:])
    with pytest.raises(ValueError, match="same memory"):
        lk.attach_kv(**arguments(key_cache=[cache, cache]))
    both = torch.zeros(CACHE)
    with pytest.raises(ValueError, match="same memory"):
        lk.attach_kv(**arguments(key_cache=both, value_cache=both))


def test_refuses_unknown_backends():
    with pytest.raises(ValueError, match="has no backend 'numpy'"):
        lk.attach_kv(**arguments(), backend="numpy")


def test_tensors_with_gradients_pass_where_none_is_recorded():
    call = arguments()
    with torch.no_grad():
        lk.attach_kv(**call | {"keys": call["keys"].clone().requires_grad_()})
    assert call["key_cache"].any()


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_autograd_sees_the_caches_change(context):
    call = arguments()
    cache = call["key_cache"]
    version = cache._version
    with context():
        lk.attach_kv(**call | {"value_cache": [torch.zeros(CACHE[1:]) for _ in range(LAYERS)]})
    assert cache._version > version


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_opcheck(quantised, paged):
    call = arguments(quantised)
    caches = list(call["key_cache"]), list(call["value_cache"])
    scales = call.get("key_scale"), call.get("value_scale")
    tensors = call["keys"], call["values"], *caches, call["slots"], call["cos"], call["sin"], *scales
    torch.library.opcheck(torch.ops.lcc_kernels.attach_kv.default, (*tensors, False, paged, None, True, "torch"))


@pytest.mark.parametrize("listed", [False, True])
def test_compiles_whole(listed):
    compiled = torch.compile(lambda call: lk.attach_kv(**call), fullgraph=True, backend="aot_eager")
    eager, traced = arguments(), arguments()
    if listed:
        traced |= {name: [x.clone() for x in traced[name]] for name in ("key_cache", "value_cache")}
    lk.attach_kv(**eager)
    compiled(traced)
    for name in ("key_cache", "value_cache"):
        assert torch.equal(torch.stack(list(traced[name])), eager[name])
        assert eager[name].any()


def test_slot_mapping():
    table = torch.tensor([7, 2, 5], dtype=torch.int32)
    positions = torch.tensor([0, 3, 4, 11, 6])
    slots = lk.slot_mapping(table, positions, 4)
    assert slots.dtype == torch.int64
    assert slots.tolist() == [28, 31, 8, 23, 10]
    assert lk.slot_mapping(table, positions[:0], 4).tolist() == []
    assert torch.equal(lk.slot_mapping(table, positions, 4, validate=False), slots)


@pytest.mark.parametrize(
    ("table", "positions", "block_size", "message"),
    [
        ([1, 2], [8], 4, "positions must lie in 0 ... 7: the block table has 2 blocks"),
        ([1, 2], [-1], 4, "positions must lie in"),
        ([1, -1], [5], 4, "names no block"),
        ([1, 2], [0], 0, "block_size must be at least 1"),
        ([[1]], [0], 4, "block_table must be 1-D"),
        ([1], [[0]], 4, "positions must be 1-D"),
        ([1], [0.0], 4, "positions must be 1-D, int32 or int64"),
    ],
)
def test_slot_mapping_refuses(table, positions, block_size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lk.slot_mapping(torch.tensor(table), torch.tensor(positions), block_size)


def test_a_mapped_sequence_reads_back_in_order():
    """Blocks in any order: gathered through the table, a sequence holds its memory in order."""
    keys = torch.randn(1, 2, 10, 8)
    cache = torch.zeros(2, 6, 4, 2, 8)  # vLLM's (2, blocks, block_size, kv_heads, head_dim)
    views = [cache[side].transpose(1, 2) for side in (0, 1)]
    table = torch.tensor([4, 1, 3])
    slots = lk.slot_mapping(table, torch.arange(1, 11), 4)
    identity = torch.ones(10, 8), torch.zeros(10, 8)
    lk.attach_kv(keys, -keys, [views[0]], [views[1]], slots, *identity, paged=True)
    sequence = cache[:, table].flatten(1, 2)[:, 1:11]
    assert torch.equal(sequence[0].transpose(0, 1), keys[0])
    assert torch.equal(sequence[1].transpose(0, 1), -keys[0])
