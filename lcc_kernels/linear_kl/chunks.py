"""How many rows and columns of both logits exist at one time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# A chunk of many rows reads lm_head seldom; one of few rows is small.
CPU_CHUNK_BYTES = 2**26
GPU_CHUNK_BYTES = 2**29

# Where the vocabulary is split, a tile has up to so many rows, and fewer rather than narrower tiles than this.
SPLIT_ROWS, SPLIT_COLUMNS = 512, 128


@dataclass(frozen=True)
class Chunk:
    """``rows`` of both logits, ``columns`` of the vocabulary at a time."""

    rows: int
    columns: int


def budget_bytes(chunk_bytes: int | None, device: torch.device) -> int:
    """``chunk_bytes``, or the default of the device."""
    return chunk_bytes or (CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES)


def row_fits(vocab: int, itemsize: int, budget: int) -> bool:
    """Whether one row of both logits stays within ``budget`` bytes."""
    return 2 * vocab * itemsize <= budget


def rows_per_chunk(rows: int, vocab: int, itemsize: int, budget: int) -> int:
    """Whole rows per chunk, for the fewest, evenly sized chunks within ``budget`` bytes."""
    return _even(rows, max(budget // (2 * vocab * itemsize), 1))


def split_rows(rows: int, vocab: int, itemsize: int, budget: int) -> Chunk:
    """At most ``SPLIT_ROWS`` rows, and as many columns of them as stay within ``budget`` bytes.

    The rows do not depend on ``vocab``: ranks of a group have to agree on them, and a last shard may be all padding.
    """
    chunk_rows = _even(rows, max(min(SPLIT_ROWS, budget // (2 * SPLIT_COLUMNS * itemsize)), 1))
    return Chunk(chunk_rows, _even(vocab, max(budget // (2 * chunk_rows * itemsize), 1)))


def spans(total: int, size: int) -> list[slice]:
    """``total`` items as slices of at most ``size``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _even(total: int, most: int) -> int:
    """Size of the fewest equal parts of ``total`` with at most ``most`` items each, at least 1."""
    parts = max(-(-total // most), 1)
    return max(-(-total // parts), 1)
