"""Every backend that can run here writes the right rows and no others, whatever the dtypes and layouts."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk

from .attach_cases import BACKENDS, DEVICE, LAYOUTS, check, laid_out, memory, tables

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
MEMORIES = [*FLOATS, torch.int8, torch.float8_e4m3fn]

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory_dtype", [torch.float32, torch.int8])
def test_layouts(backend, layout, memory_dtype):
    check(backend, layout, memory_dtype)


@pytest.mark.parametrize("memory_dtype", MEMORIES)
@pytest.mark.parametrize("cache_dtype", FLOATS)
def test_dtypes(backend, memory_dtype, cache_dtype):
    check(backend, "listed", memory_dtype, cache_dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "rotary_dim"),
    [
        ((2, 3, 7, 20), 6),
        ((1, 1, 1, 2), 2),
        ((2, 1, 9, 7), 4),
        ((1, 2, 24, 96), 96),
        ((1, 2, 24, 128), 96),
        ((1, 1, 3, 64), 16),
    ],
)
def test_shapes_and_partial_rotary(backend, shape, rotary_dim, interleaved):
    check(backend, "paged_nhd", shape=shape, rotary_dim=rotary_dim, interleaved=interleaved)
    check(backend, "listed", torch.float8_e4m3fn, torch.bfloat16, shape, rotary_dim, interleaved)


def test_strided_memory_and_tables_and_narrow_integers(backend):
    shape, caches = (2, 3, 5, 8), torch.zeros(4, 2, 1, 3, 9, 8, device=DEVICE)
    keys, values = (torch.randn(2, 5, 8, 3, device=DEVICE).permute(0, 3, 1, 2) for _ in range(2))
    assert keys.shape == shape
    cos, sin = (x[::2] for x in tables(10, 8, False))
    slots = torch.tensor([8, 0, 1, 0, 2, 0, 3, 0, 5, 0], device=DEVICE)[::2]
    lk.attach_kv(keys, values, *caches[:2], slots, cos, sin, backend=backend)
    plain = (x.contiguous() for x in (keys, values))
    lk.attach_kv(*plain, *caches[2:], slots.int(), cos.contiguous(), sin.contiguous(), backend="reference")
    torch.testing.assert_close(caches[:2], caches[2:])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("apart", [False, True], ids=["expanded", "apart"])
def test_vectors_that_do_not_lie_side_by_side(backend, apart, interleaved):
    """Slots, tables and scales with a gap after every number, or with one number for all."""
    shape = layers, heads, tokens, head_dim = 2, 3, 5, 8

    def placed(x):
        return laid_out(x[..., None], range(x.ndim + 1), gap=2)[..., 0] if apart else x[:1, ..., :1].expand(x.shape)

    cos, sin = (placed(x) for x in tables(tokens, head_dim, interleaved))
    slots = placed(torch.tensor([8, 0, 1, 2, 6], device=DEVICE)) if apart else torch.arange(tokens, device=DEVICE)
    keys, values, *scales = memory(*shape, torch.int8)
    scales = [placed(x) for x in scales]
    caches = torch.zeros(2, 2, layers, 1, heads, 9, head_dim, device=DEVICE)
    for target, name, copy in zip(caches, (backend, "reference"), (lambda x: x, torch.Tensor.contiguous), strict=True):
        inputs = [copy(x) for x in (slots, cos, sin, *scales)]
        lk.attach_kv(keys, values, *target, *inputs, backend=name, interleaved=interleaved)
    torch.testing.assert_close(*caches)


@pytest.mark.parametrize("table_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tables_of_other_dtypes(backend, table_dtype):
    check(backend, cache_dtype=torch.bfloat16, table_dtype=table_dtype)


def test_slots_that_ascend_with_gaps(backend):
    keys, values = torch.randn(2, 1, 2, 3, 8, device=DEVICE)
    caches, slots = torch.zeros(2, 1, 1, 2, 7, 8, device=DEVICE), torch.tensor([1, 2, 5], device=DEVICE)
    lk.attach_kv(keys, values, *caches, slots, *tables(3, 8, False), backend=backend)
    assert torch.equal(caches[1, 0, 0][:, slots], values[0])
    assert (caches[:, :, :, :, [0, 3, 4, 6]] == 0).all()


def test_unchecked_values(backend):
    check(backend, validate=False)


def test_float64(backend):
    if backend in ("triton", "cuda"):
        with pytest.raises(lk.BackendUnavailableError, match="float64"):
            check(backend, "stacked", torch.float64, torch.float64)
        return
    check(backend, "stacked", torch.float64, torch.float64, table_dtype=torch.float64)
    check(backend, "listed", torch.int8, torch.float64, table_dtype=torch.float64)


def test_special_values_stay_where_they_are(backend):
    """NaN and infinity of a memory are written, not hidden, and do not spread."""
    memory = torch.ones(1, 1, 3, 16, device=DEVICE)
    memory[0, 0, 1, 4], memory[0, 0, 1, 5] = torch.nan, torch.inf
    caches, slots = torch.zeros(2, 1, 1, 1, 5, 16, device=DEVICE), torch.tensor([4, 2, 0], device=DEVICE)
    lk.attach_kv(memory, memory, *caches, slots, *tables(3, 2, False), backend=backend)
    torch.testing.assert_close(caches[1, 0, 0, 0, slots], memory[0, 0], rtol=0, atol=0, equal_nan=True)
    assert caches.isfinite().logical_not().sum() == 4


def test_every_e4m3_number(backend):
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).reshape(1, 1, 4, 64)
    memory = codes.view(torch.float8_e4m3fn)
    caches = torch.zeros(2, 1, 1, 1, 4, 64, device=DEVICE)
    ones = torch.ones(1, 1, 64, device=DEVICE)
    identity = torch.ones(4, 2, device=DEVICE), torch.zeros(4, 2, device=DEVICE)
    lk.attach_kv(
        memory, memory, *caches, torch.arange(4, device=DEVICE), *identity, ones, ones[..., :4], backend=backend
    )
    expected = memory[0, 0].float()
    torch.testing.assert_close(caches[1, 0, 0, 0], expected, rtol=0, atol=0, equal_nan=True)


def test_no_tokens(backend):
    empty, caches = torch.zeros(2, 3, 0, 8, device=DEVICE), torch.ones(2, 2, 1, 3, 4, 8, device=DEVICE)
    nothing = torch.zeros(0, 4, device=DEVICE)
    slots = torch.zeros(0, dtype=torch.long, device=DEVICE)
    lk.attach_kv(empty, empty, *caches, slots, nothing, nothing, backend=backend)
    assert (caches == 1).all()


def test_two_memories_side_by_side(backend):
    """Two attachments write what one of both together does."""
    keys, values = torch.randn(2, 2, 2, 9, 8, device=DEVICE)
    (cos, sin), slots = tables(9, 8, False), torch.randperm(12, device=DEVICE)[:9]
    caches = torch.zeros(4, 2, 1, 2, 12, 8, device=DEVICE)
    lk.attach_kv(keys, values, *caches[:2], slots, cos, sin, backend=backend)
    for part in (slice(0, 4), slice(4, 9)):
        lk.attach_kv(
            keys[:, :, part], values[:, :, part], *caches[2:], slots[part], cos[part], sin[part], backend=backend
        )
    assert torch.equal(caches[:2], caches[2:])
