"""A vocabulary sharded over a process group: rank r holds the r-th slice of the columns. ``None`` is no group."""

from __future__ import annotations

import torch
import torch.distributed as dist

if dist.is_available():
    # Its functions have the default group as a default argument. torch imports it when a custom op first runs: then
    # they would hold a group that exists already, and its threads, to the end of the process, which can abort there.
    import torch.distributed.nn


def resolve(name: str) -> dist.ProcessGroup:
    """The process group of this name (custom ops take names: their schemas have no process groups)."""
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)  # type: ignore[arg-type]


def reduce_(tensor: torch.Tensor, group: str | None, maximum: bool = False) -> torch.Tensor:
    """Sum ``tensor`` (or take its maximum) over the ranks, in place."""
    if group is not None:
        dist.all_reduce(tensor, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=resolve(group))
    return tensor


def gather(tensor: torch.Tensor, group: str | None, dim: int) -> torch.Tensor:
    """All ranks' slices side by side along ``dim``; only this rank's own carries a gradient."""
    if group is None:
        return tensor
    ranks = resolve(group)
    slices: list = [None] * dist.get_world_size(ranks)
    dist.all_gather_object(slices, tensor.detach(), group=ranks)
    slices[dist.get_rank(ranks)] = tensor
    return torch.cat(slices, dim)


def valid_columns(columns: int, vocab_size: int | None, process_group: dist.ProcessGroup | None) -> int:
    """How many of this rank's ``columns`` belong to a vocabulary padded beyond ``vocab_size``.

    Raises:
        ValueError: ``vocab_size`` is not between 1 and the columns of all ranks.
    """
    ranks, rank = 1, 0
    if process_group is not None:
        ranks, rank = dist.get_world_size(process_group), dist.get_rank(process_group)
    if vocab_size is None:
        vocab_size = columns * ranks
    if not 1 <= vocab_size <= columns * ranks:
        raise ValueError(f"vocab_size must lie between 1 and the {columns * ranks} columns there are; got {vocab_size}")
    return min(max(vocab_size - rank * columns, 0), columns)
