"""The row kernel in CUDA C++ (``csrc/linear_kl``): a cluster of blocks a row on sm_90, one block before."""

from __future__ import annotations

import torch

from .options import KINDS, SHAPES, KLOptions


def divergence_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> torch.Tensor:
    """Losses (rows,) of raw logits (rows, V); ``with_grad`` replaces ``student`` by its gradient, in place."""
    student, teacher = (x if x.stride(1) == 1 else x.contiguous() for x in (student, teacher))
    loss = student.new_empty(len(student), dtype=torch.float32)
    torch.ops.lcc_kernels_cuda.kl_rows(
        student,
        teacher,
        loss,
        None if row_weight is None else row_weight.float().contiguous(),
        KINDS.index(options.kind),
        SHAPES.index(options.shape),
        options.inner,
        options.scale,
        options.factor,
        options.beta,
        with_grad,
    )
    return loss
