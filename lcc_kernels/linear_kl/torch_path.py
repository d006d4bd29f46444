"""The ``torch`` backend: any device, any floating dtype, any vocabulary."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from . import driver, split_vocab
from .chunks import budget_bytes, row_fits, spans
from .divergence import whole_rows
from .driver import Rows
from .options import KLOptions, accumulation_dtype

# A block's temporaries stay in a core's cache on the CPU, and far below the chunk itself on a GPU.
CPU_BLOCK_ELEMENTS = 2**17
GPU_BLOCK_ELEMENTS = 2**24


def divergence_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> torch.Tensor:
    """Losses (rows,) of raw logits (rows, V); ``with_grad`` replaces ``student`` by its gradient, in place."""
    rows, columns = student.shape
    elements = GPU_BLOCK_ELEMENTS if student.is_cuda else CPU_BLOCK_ELEMENTS
    loss = student.new_empty(rows, dtype=accumulation_dtype(student.dtype))
    for span in spans(rows, max(elements // columns, 1)):
        loss[span] = _block_(student[span], teacher[span], options, with_grad)
    return loss


def _block_(student: torch.Tensor, teacher: torch.Tensor, options: KLOptions, with_grad: bool) -> torch.Tensor:
    pair = whole_rows(student, teacher, options, finite=student.is_cpu)  # a GPU would have to be waited for
    loss, centre = pair.row_sums()
    if pair.finite and not math.isfinite(loss.sum()):
        pair = replace(pair, finite=False)
        loss, centre = pair.row_sums()
    mean = 1 / student.shape[1] if options.loss == "mse" else 1.0
    if with_grad:
        torch.mul(pair.gradient(centre), options.slope(student) * mean, out=student)
    return loss.mul_(mean).clamp_min_(0.0)


def linear_kl_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> Rows:
    """``driver.linear_kl_rows``, with a split vocabulary where ranks share it or one row exceeds the budget."""
    budget = budget_bytes(options.chunk_bytes, student.device)
    if options.group is not None or not row_fits(len(weight), options.of_logits(weight.dtype).itemsize, budget):
        return split_vocab.linear_kl_rows(student, teacher, weight, bias, options, with_grad)
    return driver.linear_kl_rows(divergence_, student, teacher, weight, bias, row_weight, options, with_grad)


def kl_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> Rows:
    """``driver.kl_rows``, with a split vocabulary where ranks share it."""
    if options.group is not None:
        return split_vocab.kl_rows(student, teacher, options, with_grad)
    return driver.kl_rows(divergence_, student, teacher, row_weight, options, with_grad)
