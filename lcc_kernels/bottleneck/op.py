"""The public op: check the arguments, run a backend behind ``torch.library``, forward and backward."""

from __future__ import annotations

import torch

from .._ops import add_op_namespace_prefix, ops
from ..dispatch import select
from ..modes import refuse_transforms
from . import backends  # noqa: F401  registers them
from .layout import BottleneckLayout


def bottleneck_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BottleneckLayout,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention under the context-isolated mask of ``layout`` (LCC section 3.2), exact.

    Args:
        q: (batch, heads, total, head_dim), floating point.
        k, v: (batch, kv_heads, total, head_dim), same dtype and device as q; kv_heads divides heads.
        layout: who sees whom; ``layout.total`` is total.
        scale: factor of the scores, head_dim ** -0.5 if None.
        return_lse: also return the log-sum-exp of each row's visible scores, (batch, heads, total), float32
            (float64 for float64 inputs), a constant to autograd.
        backend: ``auto``, or one of ``available_backends("bottleneck_attention")``.

    Returns:
        out like q, differentiable in q, k and v (once).

    Raises:
        ValueError: shapes, dtypes or devices do not fit one another or the layout, or the backend is unknown.
        BackendUnavailableError: ``backend`` cannot run here or on these tensors.
        RuntimeError: a transform of ``torch.func`` differentiates it, or forward mode; or ``triton`` is captured in a
            CUDA graph on a layout that is new. Layouts that are captured keep their tables for ever.
    """
    _check(q, k, v, layout)
    refuse_transforms("bottleneck_attention", q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = ops.bottleneck_attention(q, k, v, layout.spans, scale, backend)
    return (out, lse) if return_lse else out


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: BottleneckLayout) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"q must be (batch, heads, total, head_dim), k and v (batch, kv_heads, total, head_dim); got {shapes}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1] != 0:
        raise ValueError(f"kv_heads must divide heads; got {shapes}")
    if q.shape[2] != layout.total:
        raise ValueError(f"the layout has {layout.total} rows and q has {q.shape[2]}: build it from this row's lengths")
    if not q.is_floating_point() or not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(
            f"q, k and v must share a floating dtype and a device; got {q.dtype} on {q.device}, "
            f"{k.dtype} on {k.device}, {v.dtype} on {v.device}"
        )


@torch.library.custom_op(add_op_namespace_prefix("bottleneck_attention"), mutates_args=())
def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return select("bottleneck_attention", backend, q, k, v, spans, scale)(q, k, v, spans, scale)


@torch.library.custom_op(add_op_namespace_prefix("bottleneck_attention_backward"), mutates_args=())
def _attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    spans: torch.Tensor,
    scale: float,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensors = (grad, q, k, v, out, lse, spans)
    return select("bottleneck_attention_backward", backend, *tensors, scale)(*tensors, scale)


@_attention.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@_attention_backward.register_fake
def _(grad, q, k, v, out, lse, spans, scale, backend):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, spans, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output, spans)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, spans = ctx.saved_tensors
    grads = ops.bottleneck_attention_backward(grad, q, k, v, out, lse, spans, ctx.scale, ctx.backend)
    return *grads, None, None, None


_attention.register_autograd(_backward, setup_context=_setup_context)
