"""Where the tokens of a sequence lie in a paged cache."""

from __future__ import annotations

import torch


def slot_mapping(
    block_table: torch.Tensor, positions: torch.Tensor, block_size: int, *, validate: bool = True
) -> torch.Tensor:
    """Slots of a sequence's tokens in a paged cache (vLLM, arXiv 2309.06180, section 4.3).

    Args:
        block_table: (max_blocks,) integers, the block that holds each run of ``block_size`` positions.
        positions: (K,) integers, the tokens' positions in the sequence.
        block_size: tokens of a block.
        validate: read both tensors to refuse bad entries, for which a GPU has to finish first.

    Returns:
        (K,) int64, block * block_size + offset, for ``attach_kv(..., paged=True)``.

    Raises:
        ValueError: not 1-D integers on one device, a position outside the table, or one whose block is negative.
    """
    for name, tensor in (("block_table", block_table), ("positions", positions)):
        if tensor.ndim != 1 or tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be 1-D, int32 or int64; got {tuple(tensor.shape)} {tensor.dtype}")
    if block_table.device != positions.device:
        raise ValueError(f"block_table is on {block_table.device} and positions on {positions.device}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1; got {block_size}")
    if not len(positions):
        return positions.long()
    capacity = len(block_table) * block_size
    if validate and not bool(((positions >= 0) & (positions < capacity)).all()):
        raise ValueError(f"positions must lie in 0 ... {capacity - 1}: the block table has {len(block_table)} blocks")
    blocks = block_table.long()[positions // block_size]
    if validate and bool((blocks < 0).any()):
        raise ValueError("block_table names no block (a negative one) for some of the positions")
    return blocks * block_size + positions % block_size
