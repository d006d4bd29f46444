"""The digest of a tensor: its numbers in their places, whatever holds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lcc.utils import hashing as digest
from lcc.utils.hashing import ROW, tensor_digest

# Several parts of several rows, and a row that is not full.
LARGE = (2 * digest.CPU_ROWS + 1) * ROW + 77


def large() -> torch.Tensor:
    return torch.randn(LARGE, generator=torch.Generator().manual_seed(0))


def exchanged(x: torch.Tensor, one: slice, other: slice) -> torch.Tensor:
    x[one], x[other] = x[other].clone(), x[one].clone()
    return x


def one_bit(x: torch.Tensor, at: int, bit: int) -> torch.Tensor:
    x.view(torch.int32)[at] ^= 1 << bit if bit < 31 else -(1 << 31)
    return x


def two_signs(x: torch.Tensor, one: int, other: int) -> torch.Tensor:
    x[[one, other]] *= -1
    return x


def moved(x: torch.Tensor, one: int, other: int, eps: float) -> torch.Tensor:
    """One more and another less: the sum stays."""
    x[one] += eps
    x[other] -= eps
    return x


HALF = LARGE // 2
CHANGES = {
    "lowest bit of the first": lambda x: one_bit(x, 0, 0),
    "sign of the first": lambda x: one_bit(x, 0, 31),
    "lowest bit of the last": lambda x: one_bit(x, LARGE - 1, 0),
    "sign of one in the middle": lambda x: one_bit(x, HALF, 31),
    "neighbours exchanged": lambda x: exchanged(x, slice(5, 6), slice(6, 7)),
    "rows exchanged": lambda x: exchanged(x, slice(0, ROW), slice(ROW, 2 * ROW)),
    "parts exchanged": lambda x: exchanged(x, slice(0, 8 * ROW), slice(8 * ROW, 16 * ROW)),
    "halves exchanged": lambda x: exchanged(x, slice(0, HALF), slice(HALF, 2 * HALF)),
    "columns of 64 exchanged": lambda x: exchanged(x[: LARGE // 64 * 64].view(-1, 64).T, slice(3, 4), slice(9, 10)),
    "reversed": lambda x: x.flip(0),
    "rotated by one": lambda x: x.roll(1),
    "rotated by a row": lambda x: x.roll(ROW),
    "all signs": lambda x: -x,
    "two signs": lambda x: two_signs(x, 3, 4),
    "two signs, a row apart": lambda x: two_signs(x, 3, ROW + 3),
    "one more and its neighbour less": lambda x: moved(x, 10, 11, 0.5),
    "one more and another less, a part apart": lambda x: moved(x, 10, 8 * ROW + 10, 0.5),
    "sorted": lambda x: x.sort().values,
    "one less": lambda x: x[:-1],
    "a zero more": lambda x: torch.cat((x, torch.zeros(1))),
    "another shape": lambda x: x[None],
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change):
    x = large()
    before = tensor_digest(x)
    other = CHANGES[change](x)
    assert tensor_digest(other if change != "columns of 64 exchanged" else x) != before


def test_any_two_numbers_exchanged_or_with_changed_signs_are_noticed():
    """Words differ by an odd number times 2^31 at most: so the factors must differ, and not cancel, in 33 bits."""
    factors = digest._multipliers().astype(np.uint64)
    modulus = np.uint64(1 << 33)
    low, negative = factors % modulus, (np.uint64(0) - factors) % modulus
    assert (factors % np.uint64(2) == 1).all()
    assert len(np.unique(low)) == ROW
    assert not np.intersect1d(low, negative).size


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_the_same_numbers_in_wider_floats_are_the_same(narrow):
    x = large().to(narrow)
    x[:4] = torch.tensor([0.0, -0.0, float("inf"), torch.finfo(narrow).tiny / 4])
    assert tensor_digest(x) == tensor_digest(x.float()) == tensor_digest(x.double())
    assert tensor_digest(x) != tensor_digest(large())


def test_float64_that_float32_cannot_hold_is_hashed_whole():
    x = large().double()
    narrow = tensor_digest(x)
    assert narrow == tensor_digest(x.float())
    x[LARGE - 1] += 1e-12
    other = tensor_digest(x)
    x[0] += 1e-12
    assert len({narrow, other, tensor_digest(x)}) == 3


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_other_dtypes_are_hashed_by_dtype_and_bytes(dtype):
    x = torch.arange(1001).remainder(2).to(dtype)
    before = tensor_digest(x)
    assert before != tensor_digest(x.float())
    x[[0, 1]] = x[[1, 0]].clone()
    assert tensor_digest(x) != before


def test_layout_and_blocks_do_not_matter(monkeypatch):
    x = large()[: 3 * ROW].view(96, -1)
    before = tensor_digest(x)
    assert tensor_digest(x.T.contiguous().T) == before == tensor_digest(torch.nn.Parameter(x))
    monkeypatch.setattr(digest, "CPU_ROWS", 1)
    assert tensor_digest(x) == before


def test_small_tensors():
    shapes = [(), (1,), (0,), (0, 3), (1, 1)]
    assert len({tensor_digest(torch.zeros(shape)) for shape in shapes}) == len(shapes)
    assert tensor_digest(torch.tensor(1.0)) != tensor_digest(torch.tensor(2.0))


def test_the_digest_is_the_same_for_ever():
    """Memories on disk hold it."""
    x = torch.arange(100_000, dtype=torch.float32).view(100, -1)
    assert tensor_digest(x).hex() == "bb7cac39979c306c6cfad12bc507ef4cc451d6b5c04d179a71766a18c78a4bbc"
