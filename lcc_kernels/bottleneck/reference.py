"""Readable bottleneck attention: the whole (total, total) score matrix at once, in float32 or better."""

from __future__ import annotations

import torch

from .layout import visible


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masked softmax attention (LCC section 3.2) with grouped queries.

    Args:
        q: (batch, heads, total, head_dim).
        k, v: (batch, kv_heads, total, head_dim).
        spans: (spans, 4), see ``BottleneckLayout``.

    Returns:
        out like q, and the log-sum-exp of the visible scores, (batch, heads, total) in float32 or better.
    """
    scores = _scores(q, k, spans, scale)
    return (scores.softmax(-1) @ _to_heads(v, q)).to(q.dtype), scores.logsumexp(-1)


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    spans: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v from that of out, in closed form (FlashAttention-2, section 2.3); shapes as above."""
    wide = grad.to(lse.dtype)
    weights = (_scores(q, k, spans, scale) - lse[..., None]).exp()
    delta = (wide * out).sum(-1, keepdim=True)
    grad_scores = weights * (wide @ _to_heads(v, q).mT - delta) * scale
    grad_k, grad_v = grad_scores.mT @ q.to(lse.dtype), weights.mT @ wide
    return (grad_scores @ _to_heads(k, q)).to(q.dtype), _to_kv_heads(grad_k, k), _to_kv_heads(grad_v, v)


def _scores(q: torch.Tensor, k: torch.Tensor, spans: torch.Tensor, scale: float) -> torch.Tensor:
    rows = torch.arange(q.shape[2], device=q.device)
    mask = visible(spans.to(q.device), rows[:, None], rows)
    keys = _to_heads(k, q)
    return (q.to(keys.dtype) @ keys.mT * scale).masked_fill(~mask, -torch.inf)


def _to_heads(kv: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(kv.dtype, torch.float32)
    return kv.to(wide).repeat_interleave(q.shape[1] // kv.shape[1], dim=1)


def _to_kv_heads(grad: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    return grad.unflatten(1, (kv.shape[1], -1)).sum(2).to(kv.dtype)
