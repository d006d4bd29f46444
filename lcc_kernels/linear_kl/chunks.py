"""How many rows and columns of both logits exist at one time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Trade-offs: a chunk of many rows reads lm_head seldom, a chunk of few rows is small.
CPU_CHUNK_BYTES = 2**26
GPU_CHUNK_BYTES = 2**29
SPLIT_ROWS = 64


@dataclass(frozen=True)
class Chunk:
    """``rows`` of both logits, ``columns`` of the vocabulary at a time."""

    rows: int
    columns: int


def plan(rows: int, vocab: int, itemsize: int, budget: int) -> Chunk:
    """The fewest, evenly sized chunks of both logits within ``budget`` bytes.

    Whole rows if one row of both fits; otherwise up to ``SPLIT_ROWS`` rows and as many columns as fit.
    """
    fitting = budget // (2 * max(vocab, 1) * itemsize)
    if fitting:
        return Chunk(_even(rows, fitting), vocab)
    split_rows = _even(rows, max(min(SPLIT_ROWS, budget // (2 * itemsize)), 1))
    return Chunk(split_rows, _even(vocab, max(budget // (2 * split_rows * itemsize), 1)))


def budget_bytes(chunk_bytes: int | None, device: torch.device) -> int:
    """``chunk_bytes``, or the default of the device."""
    return chunk_bytes or (CPU_CHUNK_BYTES if device.type == "cpu" else GPU_CHUNK_BYTES)


def spans(total: int, size: int) -> list[slice]:
    """``total`` items as slices of at most ``size``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _even(total: int, most: int) -> int:
    """Size of the fewest equal parts of ``total`` with at most ``most`` items each, at least 1."""
    parts = -(-total // most)
    return max(-(-total // max(parts, 1)), 1)
