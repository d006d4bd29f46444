"""The public ops: check the arguments, run a backend, reduce the rows."""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup

from ..modes import refuse_transforms, without_autocast
from . import reference
from .groups import valid_columns
from .options import KLOptions
from .registration import kl_rows, linear_kl_rows

REDUCTIONS = ("none", "mean", "sum")


def linear_kl(
    student_hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    direction: str = "forward",
    row_weight: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    *,
    beta: float = 0.5,
    vocab_size: int | None = None,
    loss: str = "kl",
    process_group: ProcessGroup | None = None,
    chunk_bytes: int | None = None,
    logit_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Divergence of the next-token distributions of two hidden states behind one frozen lm_head.

    The logits ``softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap) / temperature`` exist a chunk at a
    time. The gradient is formed along with the loss: ``student_hidden`` gets one, ``weight`` and ``bias`` never do.

    Args:
        student_hidden: (rows, H), floating point.
        teacher_hidden: (rows, H), same dtype and device, not requiring a gradient.
        weight: (V, H), same dtype; with ``process_group`` this rank's slice of the vocabulary.
        bias: (V,) or None, same dtype.
        temperature: divides the logits of both; the loss is not multiplied by its square.
        softcap: soft-cap of the logits (Gemma 2), or None.
        logit_scale: factor on the logits, before the soft-cap.
        direction: ``forward`` is KL(teacher || student) (LCC Eqs. 2-4), ``reverse`` KL(student || teacher), ``jsd`` the
            generalised Jensen-Shannon divergence (GKD, arXiv 2306.13649).
        row_weight: (rows,) non-negative weights, or None for ones. Rows of weight 0 may hold anything. They cost
            nothing if the weights lie on the CPU, and their share of the GEMMs on a GPU, which is never waited for.
        reduction: ``none`` gives the weighted losses (rows,), ``sum`` their sum, ``mean`` that over the sum of weights
            (0 where there is no weight at all).
        backend: a name of ``available_backends("linear_kl")``, or ``auto``.
        beta: weight of the teacher in the mixture of ``jsd``, strictly between 0 and 1.
        vocab_size: size of the vocabulary where V is padded beyond it.
        loss: ``kl`` in nats, or ``mse``, the mean squared difference of the logits (the ablation in LCC).
        process_group: ranks that hold equal slices of the vocabulary in order; every rank passes all rows and gets
            the whole loss and the whole gradient.
        chunk_bytes: bound on the logits that exist at one time (64 MiB on a CPU, 512 MiB on a GPU).
        logit_dtype: None keeps the logits in the dtype of ``weight``. ``torch.float32`` forms those of a lower
            precision in float32, at twice the bytes: bfloat16 rounds a logit by up to 1/256 of itself, which near a KL
            of 1e-3 makes much of the gradient noise.

    Returns:
        The loss, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or an option do not fit, or the teacher or ``row_weight`` requires a gradient.
        BackendUnavailableError: ``backend`` cannot run on these arguments.
        RuntimeError: a transform of ``torch.func`` differentiates it, or forward mode; ``reference`` takes them.
    """
    _check_pair(student_hidden, teacher_hidden)
    _check_head(student_hidden, weight, bias)
    _check_rows(student_hidden, row_weight, reduction)
    columns = valid_columns(len(weight), vocab_size, process_group)
    weight = weight.detach()[:columns]
    bias = None if bias is None else bias.detach()[:columns]
    options = KLOptions(
        temperature, softcap, logit_scale, direction, beta, loss, chunk_bytes, _group_name(process_group), logit_dtype
    )
    pair = student_hidden, teacher_hidden
    if backend == "reference":
        rows = without_autocast(reference.linear_kl_rows)(*pair, weight, bias, row_weight, options)
    else:
        refuse_transforms("linear_kl", student_hidden)
        wanted = _wants_gradient(student_hidden)
        rows, _ = linear_kl_rows(*pair, weight, bias, row_weight, backend, wanted, *options.arguments)
    return _reduce(rows, row_weight, reduction)


def kl_from_logits(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    direction: str = "forward",
    row_weight: torch.Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    *,
    beta: float = 0.5,
    vocab_size: int | None = None,
    loss: str = "kl",
    process_group: ProcessGroup | None = None,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """``linear_kl`` of logits that are already there, differentiable in the student's alone.

    Args:
        student_logits: (rows, V), floating point; with ``process_group`` this rank's columns.
        teacher_logits: (rows, V), same dtype and device, not requiring a gradient.
        temperature, softcap, logit_scale, direction, row_weight, reduction, backend, beta, vocab_size, loss,
            process_group, chunk_bytes: as in ``linear_kl``; each rank of a group gets the gradient of its own columns.

    Returns:
        The loss, in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or an option do not fit, or the teacher or ``row_weight`` requires a gradient.
        BackendUnavailableError: ``backend`` cannot run on these arguments.
        RuntimeError: a transform of ``torch.func`` differentiates it, or forward mode; ``reference`` takes them.
    """
    _check_pair(student_logits, teacher_logits)
    _check_rows(student_logits, row_weight, reduction)
    columns = valid_columns(student_logits.shape[1], vocab_size, process_group)
    options = KLOptions(
        temperature, softcap, logit_scale, direction, beta, loss, chunk_bytes, _group_name(process_group)
    )
    pair = student_logits[:, :columns], teacher_logits[:, :columns]
    if backend == "reference":
        rows = without_autocast(reference.kl_rows)(*pair, row_weight, options)
    else:
        refuse_transforms("kl_from_logits", student_logits)
        rows, _ = kl_rows(*pair, row_weight, backend, _wants_gradient(student_logits), *options.arguments)
    return _reduce(rows, row_weight, reduction)


def _check_pair(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must be 2-D and of one shape; got {tuple(student.shape)} and {tuple(teacher.shape)}: "
            "flatten batch and length into rows"
        )
    if not student.is_floating_point() or student.dtype != teacher.dtype or student.device != teacher.device:
        raise ValueError(
            "student and teacher must share a floating dtype and a device; "
            f"got {student.dtype} on {student.device} and {teacher.dtype} on {teacher.device}"
        )
    if teacher.requires_grad:
        raise ValueError("the teacher requires a gradient, which this loss never gives: run it under torch.no_grad()")


def _check_head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight must be (V, {hidden.shape[1]}) for these hidden states; got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},) for this weight; got {tuple(bias.shape)}")
    if any(x is not None and (x.dtype, x.device) != (hidden.dtype, hidden.device) for x in (weight, bias)):
        raise ValueError(
            f"weight and bias must be {hidden.dtype} on {hidden.device} like the hidden states; "
            f"weight is {weight.dtype} on {weight.device}: cast the hidden states"
        )


def _check_rows(student: torch.Tensor, row_weight: torch.Tensor | None, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}; got {reduction!r}")
    if row_weight is None:
        return
    if row_weight.shape != student.shape[:1]:
        raise ValueError(f"row_weight must be ({len(student)},); got {tuple(row_weight.shape)}")
    if row_weight.requires_grad:
        raise ValueError("row_weight requires a gradient, which this loss never gives: detach it")


def _group_name(process_group: ProcessGroup | None) -> str | None:
    return None if process_group is None else process_group.group_name


def _wants_gradient(student: torch.Tensor) -> bool:
    return student.requires_grad and torch.is_grad_enabled()


def _reduce(rows: torch.Tensor, row_weight: torch.Tensor | None, reduction: str) -> torch.Tensor:
    if row_weight is not None:
        row_weight = row_weight.to(rows)
        rows = rows * row_weight
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if row_weight is None:
        return rows.sum() / max(len(rows), 1)
    total = row_weight.sum()
    return rows.sum() / total.where(total != 0, 1.0)
