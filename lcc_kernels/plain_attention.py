"""One rectangular or causal attention with its log-sum-exp, and its gradient given a *merged* out and lse.

Queries are (n, group, rows, head_dim); keys and values (n, 1, keys, head_dim) serve the whole group unrepeated.
Given the out and lse of a softmax over more keys than these, ``attend_backward`` returns these keys' share of the
gradient (FlashAttention-2, section 2.3: only delta = grad . out and lse couple one key to another).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

BLOCK_SCORES = 2**24  # scores alive at a time away from the CPU: 64 MB in float32


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out like q and lse (n, group, rows), float32 or better; ``causal`` aligns the first row and key."""
    if q.device.type == "cpu":
        q, keys, values = _for_fused(q, k, v)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = fused(q, keys, values, 0.0, causal, scale=scale)
        _keep_nan(out, lse, q, keys)
        return out, lse
    return attend_in_blocks(q, k, v, causal, scale)


def attend_backward(
    inputs: Sequence[torch.Tensor], causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v; ``inputs`` are grad, q, k, v and the merged out and lse, as in ``attend``."""
    grad, q, k, v, out, lse = inputs
    if q.device.type != "cpu":
        return attend_in_blocks_backward(inputs, causal, scale)
    q, keys, values = _for_fused(q, k, v)
    grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _row_major(grad), q, keys, values, out, lse, 0.0, causal, scale=scale
    )
    return grad_q, _over_group(grad_k), _over_group(grad_v)


def _keep_nan(out: torch.Tensor, lse: torch.Tensor, q: torch.Tensor, keys: torch.Tensor) -> None:
    """The fused CPU attention takes a row whose few scores are all NaN for one without keys, with 0 for out and lse."""
    if not lse.all():
        lost = (lse == 0) & (q * keys[:, :, :1]).sum(-1).isnan()
        out[lost] = lse[lost] = torch.nan


def _over_group(grad: torch.Tensor) -> torch.Tensor:
    """(n, group, keys, head_dim) summed to (n, 1, keys, head_dim)."""
    return grad if grad.shape[1] == 1 else grad.sum(1, keepdim=True)


def merge(out: torch.Tensor, lse: torch.Tensor, piece: torch.Tensor, piece_lse: torch.Tensor) -> None:
    """Fold a softmax over further keys into ``out`` (..., head_dim) and ``lse`` (...), in place; pieces like them."""
    both = torch.logaddexp(lse, piece_lse)
    out.copy_(out * (lse - both).exp()[..., None] + piece * (piece_lse - both).exp()[..., None])
    lse.copy_(both)


def _for_fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What torch's fused CPU attention takes: as many key heads as query heads (views), and contiguous rows."""
    keys, values = (_row_major(x).expand(-1, q.shape[1], -1, -1) for x in (k, v))
    return _row_major(q), keys, values


def _row_major(x: torch.Tensor) -> torch.Tensor:
    """``x`` with contiguous rows: the fused attention misreads others without a word."""
    return x if x.stride(-1) == 1 else x.contiguous()


def attend_in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``attend`` in matrix products of a block of rows, on any device."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for rows, keys in _blocks(q, k, causal):
        scores = _scores(q, k, rows, keys, causal, scale)
        lse[:, :, rows] = scores.logsumexp(-1)
        out[:, :, rows] = scores.softmax(-1).to(v.dtype) @ v[:, :, keys]
    return out, lse


def attend_in_blocks_backward(
    inputs: Sequence[torch.Tensor], causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``attend_backward`` in matrix products of a block of rows, on any device."""
    grad, q, k, v, out, lse = inputs
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (torch.zeros_like(x, dtype=lse.dtype) for x in (k, v))
    for rows, keys in _blocks(q, k, causal):
        weights = (_scores(q, k, rows, keys, causal, scale) - lse[:, :, rows, None]).exp()
        delta = (grad[:, :, rows].to(lse.dtype) * out[:, :, rows]).sum(-1, keepdim=True)
        grad_weights = (grad[:, :, rows] @ v[:, :, keys].mT).to(lse.dtype)
        grad_scores = (weights * (grad_weights - delta) * scale).to(q.dtype)
        grad_q[:, :, rows] = grad_scores @ k[:, :, keys]
        grad_k[:, :, keys] += (grad_scores.mT @ q[:, :, rows]).sum(1, keepdim=True)
        grad_v[:, :, keys] += (weights.to(q.dtype).mT @ grad[:, :, rows]).sum(1, keepdim=True)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _blocks(q: torch.Tensor, k: torch.Tensor, causal: bool) -> list[tuple[slice, slice]]:
    """Rows, and the keys that they see, such that a block's scores stay within ``BLOCK_SCORES``."""
    total = q.shape[2]
    step = max(16, BLOCK_SCORES // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    stops = [(start, min(start + step, total)) for start in range(0, total, step)]
    return [(slice(start, stop), slice(0, stop if causal else k.shape[2])) for start, stop in stops]


def _scores(q: torch.Tensor, k: torch.Tensor, rows: slice, keys: slice, causal: bool, scale: float) -> torch.Tensor:
    """(n, group, rows, keys), float32 or better, -inf above the diagonal if ``causal``."""
    scores = (q[:, :, rows] @ k[:, :, keys].mT).to(torch.promote_types(q.dtype, torch.float32)) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(rows.start + 1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores
