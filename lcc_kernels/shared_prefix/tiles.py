"""The tiles that the Triton kernel compiles for: a pure function of (architecture, head_dim, dtype)."""

from __future__ import annotations

import torch

from ..tiles import INTERPRETER, Tile


def tiles(arch: int, head_dim: int, dtype: torch.dtype, entropy: bool = False) -> tuple[Tile, ...]:
    """Tiles for compute capability ``arch`` (80, 90, ...; 0 in the interpreter), head_dim 16 to 256, few rows first.

    They compile without a spilled register, but for 16 bytes outside the loops with every option at once
    (tests/lcc_kernels/shared_prefix/resources.json). For that, entropy takes 32 rows at most, and heads wider than 128
    do so always. None has been timed on a GPU yet.
    """
    if arch == INTERPRETER:  # several tiles in a tiny test
        return (Tile(16, 16, 4, 1),)
    if dtype == torch.float32:  # three tensor-core products for one (tf32x3) hold every operand twice
        return (Tile(16, 32, 4, 2), Tile(32, 32, 8, 2)) if head_dim <= 64 else (Tile(16, 16, 4, 2),)
    choices = _half_hopper(head_dim) if 90 <= arch < 120 else _half_ampere(head_dim)
    return tuple(tile for tile in choices if tile.rows <= 32 or not entropy)


def _half_hopper(head_dim: int) -> tuple[Tile, ...]:
    """From 64 rows on, a warpgroup multiplies."""
    if head_dim <= 64:
        return Tile(16, 128, 4, 3), Tile(32, 128, 4, 3), Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)
    if head_dim <= 128:
        return Tile(16, 64, 4, 3), Tile(32, 64, 4, 3), Tile(64, 32, 4, 3), Tile(128, 64, 8, 3)
    return Tile(16, 32, 4, 3), Tile(32, 32, 4, 3)


def _half_ampere(head_dim: int) -> tuple[Tile, ...]:
    """99 KB of shared memory at most, what 8.6, 8.9 and 12.0 have."""
    if head_dim <= 64:
        return Tile(16, 128, 4, 3), Tile(32, 128, 4, 3), Tile(64, 64, 4, 3), Tile(128, 64, 8, 3)
    if head_dim <= 128:
        return Tile(16, 32, 4, 3), Tile(32, 32, 4, 2), Tile(128, 32, 8, 2)
    return Tile(16, 16, 4, 3), Tile(32, 16, 4, 3)
