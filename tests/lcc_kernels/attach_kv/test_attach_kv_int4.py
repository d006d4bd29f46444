"""Memories of four bits a number, and scales that groups of tokens or of channels share."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk

from .attach_cases import BACKENDS, DEVICE, LAYOUTS, attach, check, memory, tables
from .test_attach_kv_contract import CACHE, HEADS, LAYERS, TOKENS, arguments

QUANTISED = [torch.uint8, torch.int8, torch.float8_e4m3fn]
PACKED = torch.zeros(LAYERS, HEADS, TOKENS, 4, dtype=torch.uint8)

each_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_packing_and_back():
    x = torch.arange(-8, 8, dtype=torch.int8)
    assert lk.pack_int4(x).tolist() == [0x98, 0xBA, 0xDC, 0xFE, 0x10, 0x32, 0x54, 0x76]
    assert torch.equal(lk.unpack_int4(lk.pack_int4(x)), x)
    strided = torch.randint(-8, 8, (6, 3, 5), dtype=torch.int8).permute(1, 2, 0)
    assert torch.equal(lk.unpack_int4(lk.pack_int4(strided)), strided)


@pytest.mark.parametrize(
    ("call", "x", "message"),
    [
        (lk.pack_int4, torch.zeros(3, 4), r"head_dim even; got \(3, 4\) torch.float32"),
        (lk.pack_int4, torch.zeros(4, 3, dtype=torch.int8), "head_dim even"),
        (lk.pack_int4, torch.tensor([0, 8], dtype=torch.int8), "-8 ... 7: clamp"),
        (lk.pack_int4, torch.tensor([-9, 0], dtype=torch.int8), "-8 ... 7: clamp"),
        (lk.unpack_int4, torch.zeros(4, dtype=torch.int8), "uint8; got"),
    ],
)
def test_packing_refuses(call, x, message):
    with pytest.raises(ValueError, match=message):
        call(x)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_layouts(backend, layout, interleaved):
    check(backend, layout, torch.uint8, interleaved=interleaved, key_group=4, value_groups=2)


@each_backend
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "rotary_dim"),
    [((2, 3, 7, 20), 8), ((1, 1, 1, 4), 4), ((1, 2, 24, 96), 96), ((1, 2, 24, 128), 96), ((1, 1, 3, 64), 16)],
)
def test_shapes_and_partial_rotary(backend, shape, rotary_dim, interleaved):
    check(backend, "paged_hnd", torch.uint8, torch.bfloat16, shape, rotary_dim, interleaved)


@each_backend
@pytest.mark.parametrize("memory_dtype", QUANTISED)
@pytest.mark.parametrize(
    ("key_group", "value_groups"), [(1, None), (4, 1), (11, 4), (32, 16), (None, 8)], ids=lambda x: f"{x}"
)
def test_groups(backend, memory_dtype, key_group, value_groups):
    """Groups of one number, of all, ones that the last token ends early, ones longer than the memory."""
    check(backend, "listed", memory_dtype, key_group=key_group, value_groups=value_groups)


@each_backend
def test_a_byte_of_both_halves_is_right_or_refused(backend):
    """Halves of three channels: a byte of the memory belongs to both."""
    if backend == "triton":
        with pytest.raises(lk.BackendUnavailableError, match="holds the last channel of one half"):
            check(backend, "stacked", torch.uint8, rotary_dim=6)
    else:
        check(backend, "stacked", torch.uint8, rotary_dim=6)
    check(backend, "stacked", torch.uint8, rotary_dim=6, interleaved=True)


@each_backend
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scales_of_other_dtypes(backend, scale_dtype):
    keys, values, *scales = memory(2, 2, 9, 16, torch.uint8, key_group=4, value_groups=2)
    scales, tail = [x.to(scale_dtype) for x in scales], (*tables(9, 16, False),)
    caches, slots = torch.zeros(2, 2, 2, 1, 2, 12, 16, device=DEVICE), torch.arange(9, device=DEVICE)
    for target, name, given in zip(caches, (backend, "reference"), (scales, [x.float() for x in scales]), strict=True):
        attach(name, keys, values, *target, slots, *tail, *given, False, False, key_group=4)
    torch.testing.assert_close(*caches)


def _four_bits(**changes):
    ones = torch.ones(LAYERS, HEADS, 2, 8), torch.ones(LAYERS, HEADS, TOKENS, 2)
    packed = {"keys": PACKED, "values": PACKED, "key_scale": ones[0], "value_scale": ones[1], "key_group": 3}
    return arguments(**packed | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": torch.zeros(LAYERS, HEADS, TOKENS, 8, dtype=torch.uint8)}, "must both be"),
        (dict.fromkeys(("keys", "values"), PACKED[..., :3]), "kv_heads of head_dim 6, and a layer's cache"),
        ({"key_scale": None}, r"a torch.uint8 memory needs key_scale, \(2, 3, 2, 8\)"),
        ({"key_group": 2, "key_scale": torch.ones(LAYERS, HEADS, 4, 8)}, r"key_scale must be \(2, 3, 2, 8\)"),
        ({"key_group": None}, r"key_scale must be \(2, 3, 8\)"),
        ({"key_group": 0}, "key_group must be at least 1"),
        ({"key_group": -1}, "key_group must be at least 1"),
        ({"value_scale": torch.ones(LAYERS, HEADS, TOKENS, 3)}, "3 groups of channels: they must divide head_dim 8"),
        ({"value_scale": torch.ones(LAYERS, HEADS, TOKENS, 0)}, "0 groups of channels"),
        ({"value_scale": -torch.ones(LAYERS, HEADS, TOKENS, 2)}, "value_scale must be finite and > 0"),
    ],
)
def test_refuses(changes, message):
    call = _four_bits(**changes)
    with pytest.raises(ValueError, match=message):
        lk.attach_kv(**call)
    assert not call["key_cache"].any()


def test_refuses_groups_of_what_has_no_scales():
    with pytest.raises(ValueError, match="key_group must be at least 1, and None without scales"):
        lk.attach_kv(**arguments(key_group=2))


def test_opcheck():
    call = _four_bits()
    caches = list(torch.zeros(CACHE)), list(torch.zeros(CACHE))
    tensors = *caches, *(call[name] for name in ("slots", "cos", "sin", "key_scale", "value_scale"))
    op = torch.ops.lcc_kernels.attach_kv.default
    torch.library.opcheck(op, (call["keys"], call["values"], *tensors, False, False, 3, True, "torch"))
