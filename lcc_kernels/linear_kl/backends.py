"""The backends of both ops, and what each cannot do."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from ..dispatch import Backend, on_triton_device, register, triton_missing
from ..library import cuda_missing
from . import driver, reference, torch_path
from .chunks import budget_bytes, row_fits
from .options import KLOptions


def _fused(run: Callable, module: str) -> Callable:
    """``run`` with the row kernel of ``module``, imported when first needed."""
    return lambda *arguments: run(import_module(module, __package__).divergence_, *arguments)


def _linear_refused(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    bias: object,
    row_weight: object,
    options: KLOptions,
    *_: object,
) -> str | None:
    budget = budget_bytes(options.chunk_bytes, student.device)
    if not row_fits(len(weight), options.of_logits(weight.dtype).itemsize, budget):
        return f"one row of both logits exceeds chunk_bytes={budget}; backend 'torch' also splits the vocabulary"
    return _refused(student, options)


def _logits_refused(
    student: torch.Tensor, teacher: torch.Tensor, row_weight: object, options: KLOptions, *_: object
) -> str | None:
    return _refused(student, options)


def _refused(student: torch.Tensor, options: KLOptions) -> str | None:
    if options.group is not None:
        return "a vocabulary sharded over a process group runs on backend 'torch'"
    if student.dtype == torch.float64:
        return "it computes in float32; float64 runs on backend 'torch'"
    return on_triton_device(student)


# ``cuda`` runs on request only: ``auto`` takes a kernel once it is measured to be the faster one.
register(
    "linear_kl",
    {
        "triton": Backend(_fused(driver.linear_kl_rows, ".triton_kernel"), triton_missing, _linear_refused),
        "torch": Backend(torch_path.linear_kl_rows),
        "cuda": Backend(_fused(driver.linear_kl_rows, ".cuda_kernel"), cuda_missing, _linear_refused, automatic=False),
        "reference": Backend(reference.linear_kl_rows, automatic=False),
    },
)
register(
    "kl_from_logits",
    {
        "triton": Backend(_fused(driver.kl_rows, ".triton_kernel"), triton_missing, _logits_refused),
        "torch": Backend(torch_path.kl_rows),
        "cuda": Backend(_fused(driver.kl_rows, ".cuda_kernel"), cuda_missing, _logits_refused, automatic=False),
        "reference": Backend(reference.kl_rows, automatic=False),
    },
)
