"""Tile sizes of the Triton kernels: one pure function of (architecture, head_dim, dtype)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..tiles import INTERPRETER, Tile


@dataclass(frozen=True)
class Tiles:
    """The tiles of the three kernels."""

    forward: Tile
    grad_q: Tile
    grad_kv: Tile


def tiles(arch: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Tiles for compute capability ``arch`` (80, 90, ...; 0 in the interpreter), head_dim 16 to 256.

    Large tiles read K and V fewer times and take fewer instructions a pair of rows; these compile without a spilled
    register (tests/lcc_kernels/bottleneck/resources.json has Triton's version). None has been timed on a GPU yet.
    """
    if arch == INTERPRETER:  # several tiles in a tiny test
        return Tiles(Tile(16, 16, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1))
    if dtype == torch.float32:
        return _float32(arch, head_dim)
    return _half_hopper(arch, head_dim) if 90 <= arch < 120 else _half_ampere(head_dim)


def _float32(arch: int, head_dim: int) -> Tiles:
    """Three tensor-core products for one (tf32x3) hold every operand twice: small tiles, and none above 128."""
    if head_dim <= 64:
        grad_q = Tile(32, 32, 4, 1) if arch < 100 else Tile(16, 32, 4, 2)
        return Tiles(Tile(32, 32, 4, 2), grad_q, Tile(32, 32, 8, 2))
    return Tiles(Tile(16, 32, 4, 1), Tile(16, 16, 4, 1), Tile(16, 16, 4, 1))


def _half_ampere(head_dim: int) -> Tiles:
    """At most 99 KB of shared memory, what 8.6, 8.9 and 12.0 have; 8 warps share the accumulators of wide heads."""
    if head_dim <= 64:
        return Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2))
    if head_dim <= 128:
        return Tiles(Tile(128, 32, 8, 3), Tile(64, 64, 8, 2), Tile(64, 64, 8, 2))
    return Tiles(Tile(64, 32, 8, 2), Tile(32, 32, 4, 2), Tile(16, 64, 8, 2))


def _half_hopper(arch: int, head_dim: int) -> Tiles:
    """128 rows feed wgmma from two warpgroups; a 256-wide grad_kv has no room for them and uses mma.

    Blackwell's tcgen05 spills where narrow heads have as many keys.
    """
    if head_dim <= 64 and arch >= 100:
        return Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 2), Tile(64, 64, 8, 2))
    if head_dim <= 64:
        return Tiles(Tile(128, 128, 8, 3), Tile(128, 128, 8, 2), Tile(64, 128, 8, 2))
    if head_dim <= 128:
        return Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2))
    return Tiles(Tile(128, 32, 8, 2), Tile(64, 32, 8, 2), Tile(32, 32, 8, 2))
