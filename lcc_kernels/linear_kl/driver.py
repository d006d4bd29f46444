"""Chunks of rows through a row kernel: GEMM, loss and logit gradient in place, GEMM back.

A row kernel takes both logits of a chunk (rows, V), replaces the student's by their gradient (if asked) and returns the
losses. Since rows are independent, the gradient of each row's own loss is formed here, in the forward, and the backward
only scales it by the row's upstream gradient: three GEMMs, no dW, and logits that exist a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .chunks import budget_bytes, rows_per_chunk, spans
from .options import KLOptions, accumulation_dtype

Rows = tuple[torch.Tensor, torch.Tensor]
RowKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, KLOptions, bool], torch.Tensor]

# In elements: Triton makes 16-byte accesses only where it knows the stride to be a multiple of 16.
GPU_ROW_ALIGNMENT = 16

# Of a weight that is cast: 4 MiB of float32 at a time.
CAST_ELEMENTS = 2**20


def linear_kl_rows(
    kernel: RowKernel,
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> Rows:
    """Hidden states (rows, H) to losses (rows,) and their gradients (rows, H), or (0, H) without ``with_grad``."""
    loss, gradient = outputs(student, with_grad)
    budget = budget_bytes(options.chunk_bytes, student.device)
    dtype = options.of_logits(weight.dtype)
    rows = rows_per_chunk(len(student), len(weight), dtype.itemsize, budget)
    buffer = _logits_buffer(2 * rows, len(weight), dtype, student.device)
    for span in spans(len(student), rows):
        hidden = torch.cat((student[span], teacher[span]))
        student_logits, teacher_logits = project(hidden, weight, bias, buffer[: len(hidden)]).chunk(2)
        weights = None if row_weight is None else row_weight[span]
        loss[span] = kernel(student_logits, teacher_logits, weights, options, with_grad)
        if with_grad:
            if dtype != weight.dtype:  # the teacher's logits are done with: the gradient is rounded into their place
                student_logits = teacher_logits.view(weight.dtype)[:, : len(weight)].copy_(student_logits)
            torch.mm(student_logits, weight, out=gradient[span])
    return loss, gradient


def kl_rows(
    kernel: RowKernel,
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> Rows:
    """Logits (rows, V) to losses (rows,) and their gradients (rows, V), or (0, V) without ``with_grad``."""
    gradient = (
        student.clone(memory_format=torch.contiguous_format) if with_grad else student.new_empty(0, student.shape[1])
    )
    logits = gradient if with_grad else student
    return kernel(logits, teacher, row_weight, options, with_grad), gradient


def live_rows(
    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Rows],
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    with_grad: bool,
) -> Rows:
    """``run`` of student and teacher (rows, n) without the rows of weight 0: their loss and gradient are 0.

    Weights on the CPU are read here, and such rows are never computed. Weights on a GPU cannot be read without
    stopping it: there the row kernel skips them.
    """
    if row_weight is None:
        return run(student, teacher, None)
    if row_weight.device.type != "cpu":
        dead = row_weight == 0
        loss, gradient = run(student, teacher, row_weight)
        return loss.masked_fill_(dead, 0.0), gradient.masked_fill_(dead[: len(gradient), None], 0.0)
    live = row_weight.nonzero().squeeze(1)
    if len(live) == len(student):
        return run(student, teacher, None)
    live = live.to(student.device)
    live_loss, live_gradient = run(student[live], teacher[live], None)
    loss, gradient = (tensor.zero_() for tensor in outputs(student, with_grad))
    loss.index_copy_(0, live, live_loss)
    return loss, gradient.index_copy_(0, live, live_gradient) if with_grad else gradient


def outputs(student: torch.Tensor, with_grad: bool) -> Rows:
    """Uninitialised losses (rows,) and gradients, like ``student``, of no rows unless ``with_grad``."""
    rows, width = student.shape
    loss = student.new_empty(rows, dtype=accumulation_dtype(student.dtype))
    return loss, student.new_empty(rows if with_grad else 0, width)


def project(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Raw logits (rows, V) of ``hidden`` (rows, H), written to ``out``, which may be of a higher precision."""
    if out.dtype != weight.dtype:
        _project_wide(hidden, weight, out)
        return out if bias is None else out.add_(bias)
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)


def _project_wide(hidden: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """``hidden @ weight.T`` in the dtype of ``out``: CUDA has a GEMM for it; elsewhere the weight is cast in tiles."""
    if out.is_cuda:
        torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)
        return
    hidden = hidden.to(out.dtype)
    for part in spans(len(weight), max(CAST_ELEMENTS // weight.shape[1], 1)):
        torch.mm(hidden, weight[part].to(out.dtype).t(), out=out[:, part])


def _logits_buffer(rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    alignment = GPU_ROW_ALIGNMENT if device.type == "cuda" else 1
    return torch.empty(rows, -(-vocab // alignment) * alignment, dtype=dtype, device=device)[:, :vocab]
