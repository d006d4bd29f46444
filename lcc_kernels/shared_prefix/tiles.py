"""How the Triton kernel divides its work: pure functions of sizes and of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch

from ..tiles import INTERPRETER, Tile

SPLITS = (1, 2, 4, 8, 16, 32)
MERGE = 128  # a merge's fixed cost (a write, an atomic, a read that waits), in rows of keys and values read


@dataclass(frozen=True)
class Work:
    """What one call does for each of ``kv_heads``: ``rows`` of queries, ``per_sequence`` of them a sequence."""

    kv_heads: int
    rows: int
    per_sequence: int
    shared: int
    own: int


def tiles(arch: int, head_dim: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Tiles for compute capability ``arch`` (80, 90, ...; 0 in the interpreter), head_dim 16 to 256, few rows first.

    They compile without a spilled register (tests/lcc_kernels/shared_prefix/resources.json). None has been timed on a
    GPU yet.
    """
    if arch == INTERPRETER:  # several tiles in a tiny test
        return (Tile(16, 16, 4, 1),)
    if dtype == torch.float32:  # three tensor-core products for one (tf32x3) hold every operand twice
        return (Tile(16, 32, 4, 2), Tile(32, 32, 8, 2)) if head_dim <= 64 else (Tile(16, 16, 4, 2),)
    keys = 128 if head_dim <= 64 else 64 if head_dim <= 128 else 32
    if head_dim > 64 and not 90 <= arch < 120:  # 99 KB of shared memory, what 8.6, 8.9 and 12.0 have
        keys //= 2
    return Tile(16, keys, 4, 3), Tile(32, keys, 4, 3), Tile(64, keys, 8, 3)  # accumulators of 64 rows fill 8 warps


@lru_cache(maxsize=4096)
def plan(choices: tuple[Tile, ...], work: Work, multiprocessors: int) -> tuple[Tile, int]:
    """The tile, and into how many programs its keys are split, that leave least to read for the slowest processor."""
    return min(product(choices, SPLITS), key=lambda choice: _cost(choice[0], choice[1], work, multiprocessors))


def _cost(tile: Tile, splits: int, work: Work, multiprocessors: int) -> float:
    """Rows of keys and values that the slowest processor reads; a row of a partial sum weighs as much (float32)."""
    programs = -(-work.rows // tile.rows) * work.kv_heads * splits
    sequences = min(-(-tile.rows // work.per_sequence), work.rows // work.per_sequence)
    keys = -(-work.shared // tile.keys) + sequences * -(-work.own // tile.keys)
    merge = MERGE + tile.rows * (splits + 1) if splits > 1 else 0
    return -(-programs // multiprocessors) * -(-keys // splits) * tile.keys + merge
