"""The ops as torch sees them: the forward gives losses and their gradients, the backward scales these."""

from __future__ import annotations

import torch
from torch.library import custom_op

from .._ops import add_op_namespace_prefix
from ..dispatch import select
from .driver import Rows, live_rows, outputs
from .options import SCHEMA, KLOptions

_ROW_ARGUMENTS = f"Tensor? row_weight, str backend, bool with_grad, {SCHEMA}"


@custom_op(
    add_op_namespace_prefix("linear_kl_rows"),
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, Tensor weight, Tensor? bias, {_ROW_ARGUMENTS}) -> (Tensor, Tensor)",
)
def linear_kl_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    row_weight: torch.Tensor | None,
    backend: str,
    with_grad: bool,
    *arguments: object,
) -> Rows:
    """Hidden states (rows, H) to losses (rows,) and their gradients (rows, H), or (0, H) without ``with_grad``."""
    options = KLOptions(*arguments)  # type: ignore[arg-type]
    run = select("linear_kl", backend, student, teacher, weight, bias, row_weight, options, with_grad)

    def chosen(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor | None) -> Rows:
        return run(left, right, weight, bias, weights, options, with_grad)

    return live_rows(chosen, student, teacher, row_weight, with_grad)


@custom_op(
    add_op_namespace_prefix("kl_rows"),
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, {_ROW_ARGUMENTS}) -> (Tensor, Tensor)",
)
def kl_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    backend: str,
    with_grad: bool,
    *arguments: object,
) -> Rows:
    """Logits (rows, V) to losses (rows,) and their gradients (rows, V), or (0, V) without ``with_grad``."""
    options = KLOptions(*arguments)  # type: ignore[arg-type]
    run = select("kl_from_logits", backend, student, teacher, row_weight, options, with_grad)

    def chosen(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor | None) -> Rows:
        return run(left, right, weights, options, with_grad)

    return live_rows(chosen, student, teacher, row_weight, with_grad)


@linear_kl_rows.register_fake
def _(student, teacher, weight, bias, row_weight, backend, with_grad, *arguments):  # type: ignore[no-untyped-def]
    return outputs(student, with_grad)


@kl_rows.register_fake
def _(student, teacher, row_weight, backend, with_grad, *arguments):  # type: ignore[no-untyped-def]
    return outputs(student, with_grad)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output[1])
    ctx.others = len(inputs) - 1


def _backward(ctx, loss_gradient, _):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("linear_kl has no second derivative; use backend='reference' for that")
    (gradient,) = ctx.saved_tensors
    return (gradient * loss_gradient[:, None]).to(gradient.dtype), *(None,) * ctx.others


for op in (linear_kl_rows, kl_rows):
    op.register_autograd(_backward, setup_context=_setup_context)
