"""Tensors whose addresses do not fit into 32 bits, in memory that is asked for and hardly touched."""

from __future__ import annotations

import pytest
import torch


def far_apart(x: torch.Tensor, dim: int) -> torch.Tensor:
    """``x`` with the last index of ``dim`` at least 2 ** 31 numbers behind the first, nothing in between."""
    moved = x.movedim(dim, 0)
    stride = -(-(2**31) // (len(moved) - 1)) + 16
    try:
        store = x.new_empty(stride * (len(moved) - 1) + moved[0].numel())
    except RuntimeError as error:
        pytest.skip(f"this machine does not give so much address space: {error}")
    placed = store.as_strided(moved.shape, (stride, *moved[0].contiguous().stride()))
    return placed.copy_(moved).movedim(0, dim)
