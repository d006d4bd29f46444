"""The bottleneck mask from attention calls that return a log-sum-exp, merged by it (FlashAttention-2, section 2.3).

The strongest way open to a user of plain torch: no mask, no copies of K and V, an exact backward from the merged out
and lse. Spans of one length that follow one another are a batch, so a training row takes a handful of calls. Checked
with torch's CPU attention; the two GPU kernels have only been called on the meta device so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch

from lcc_kernels import BottleneckLayout
from lcc_kernels.bottleneck.layout import shared_reads
from lcc_kernels.plain_attention import merge

aten = torch.ops.aten


@dataclass(frozen=True)
class Kernel:
    """One attention. ``forward(q, k, v, causal, scale)`` returns out, lse (n, heads, rows) and what ``backward`` wants.

    ``backward(grad, q, k, v, out, lse, state, causal, scale)`` returns the gradients of q, k and v.
    """

    forward: Callable
    backward: Callable


@dataclass(frozen=True)
class Call:
    """``rows`` see ``keys``: ``count`` equal pieces of both, each causal over itself, or all rows see all keys."""

    rows: slice
    keys: slice
    count: int
    causal: bool


def calls(layout: BottleneckLayout) -> list[Call]:
    """The causal calls, which partition the rows, and then those over shared intervals."""
    causal_calls = []
    for length, spans in groupby(layout.spans.tolist(), lambda span: span[1] - span[0]):
        run = list(spans)
        rows = slice(run[0][0], run[0][0] + length * len(run))
        causal_calls.append(Call(rows, rows, len(run), True))
    return causal_calls + [Call(rows, keys, 1, False) for rows, keys in shared_reads(layout.spans)]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: Kernel, plan: list[Call], scale: float
) -> torch.Tensor:
    """out like q (1, heads, total, head_dim); k and v (1, kv_heads, total, head_dim); differentiable."""
    return _Merged.apply(q, k, v, kernel, plan, scale)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, kernel, plan, scale):
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        ctx.states = []
        for call in plan:
            inputs = (_fold(q, call.rows, call), _fold(k, call.keys, call), _fold(v, call.keys, call))
            piece, piece_lse, state = kernel.forward(*inputs, call.causal, scale)
            ctx.states.append(state)
            whole, whole_lse = _fold(out, call.rows, call), _fold(lse, call.rows, call)
            if call.causal:
                whole.copy_(piece)
                whole_lse.copy_(piece_lse)
            else:
                merge(whole, whole_lse, piece, piece_lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.kernel, ctx.plan, ctx.scale = kernel, plan, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for call, state in zip(ctx.plan, ctx.states, strict=True):
            seen = (call.rows, call.rows, call.keys, call.keys, call.rows, call.rows)
            inputs = [_fold(x, where, call) for x, where in zip((grad, q, k, v, out, lse), seen, strict=True)]
            gained = ctx.kernel.backward(*inputs, state, call.causal, ctx.scale)
            for whole, piece, where in zip(grads, gained, (call.rows, call.keys, call.keys), strict=True):
                target = _fold(whole, where, call)
                if call.causal:
                    target.copy_(piece)
                else:
                    target.add_(piece)
        return *grads, None, None, None


def _fold(x: torch.Tensor, where: slice, call: Call) -> torch.Tensor:
    """(1, heads, total, ...) to a view (count, heads, length, ...) of the rows ``where``."""
    return x[0, :, where].unflatten(1, (call.count, -1)).transpose(0, 1)


def _flash(q, k, v, causal, scale):
    out, lse, *state, _ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return out, lse, state


def _flash_backward(grad, q, k, v, out, lse, state, causal, scale):
    *lengths, seed, offset = state
    tensors = (grad, q, k, v, out, lse.contiguous())
    return aten._scaled_dot_product_flash_attention_backward(*tensors, *lengths, 0.0, causal, seed, offset, scale=scale)


def _cudnn(q, k, v, causal, scale):
    out, lse, *state, _ = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    return out, lse.reshape(q.shape[:3]), state


def _cudnn_backward(grad, q, k, v, out, lse, state, causal, scale):
    *lengths, seed, offset = state
    tensors = (grad, q, k, v, out, lse[..., None].contiguous(), seed, offset, None)
    return aten._scaled_dot_product_cudnn_attention_backward(*tensors, *lengths, 0.0, causal, scale=scale)


FLASH = Kernel(_flash, _flash_backward)
CUDNN = Kernel(_cudnn, _cudnn_backward)
