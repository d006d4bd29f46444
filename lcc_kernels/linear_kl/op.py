"""The public ops: check the arguments, run a backend, reduce the rows."""

from __future__ import annotations

import torch

from .reference import divergence_rows, squared_error_rows

DIRECTIONS = ("forward", "reverse")
LOSSES = ("kl", "mse")


def kl_from_logits(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    direction: str = "forward",
    row_weight: torch.Tensor | None = None,
    reduction: str = "mean",
    loss: str = "kl",
) -> torch.Tensor:
    """Divergence between two distributions given by logits, differentiable in the student's alone.

    Args:
        student_logits: (rows, V), floating point.
        teacher_logits: (rows, V), same dtype and device, not requiring a gradient.
        direction: ``forward`` (KL(teacher || student), LCC Eqs. 2-4) or ``reverse``.
        row_weight: (rows,) non-negative weights, or None for ones.
        reduction: ``none`` gives (rows,), ``sum`` the weighted sum, ``mean`` that over the sum of weights.
        loss: ``kl`` in nats, or ``mse`` over logits (the paper's ablation).

    Raises:
        ValueError: shapes differ, an option is unknown, or the teacher requires a gradient.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise ValueError(f"logits must both be (rows, V); got {student_logits.shape} and {teacher_logits.shape}")
    if teacher_logits.requires_grad:
        raise ValueError("the teacher requires a gradient: run it under torch.no_grad()")
    if direction not in DIRECTIONS or loss not in LOSSES:
        raise ValueError(f"direction must be one of {DIRECTIONS} and loss of {LOSSES}; got {direction!r}, {loss!r}")
    if loss == "mse":
        rows = squared_error_rows(student_logits, teacher_logits)
    else:
        rows = divergence_rows(student_logits, teacher_logits, direction)
    return _reduce(rows, row_weight, reduction)


def linear_kl(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    **options: object,
) -> torch.Tensor:
    """``kl_from_logits`` of two hidden states behind one frozen lm_head.

    Args:
        student_hidden, teacher_hidden: (rows, H).
        weight: (V, H); bias: (V,) or None. Neither receives a gradient.
        **options: those of ``kl_from_logits``.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    logits = [torch.nn.functional.linear(hidden, weight, bias) for hidden in (student_hidden, teacher_hidden)]
    return kl_from_logits(*logits, **options)  # type: ignore[arg-type]


def _reduce(rows: torch.Tensor, row_weight: torch.Tensor | None, reduction: str) -> torch.Tensor:
    weighted = rows if row_weight is None else rows * row_weight
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    if reduction == "mean":
        return weighted.sum() / (len(rows) if row_weight is None else row_weight.sum())
    raise ValueError(f"reduction must be none, mean or sum; got {reduction!r}")
