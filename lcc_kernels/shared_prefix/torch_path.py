"""Shared-prefix attention in matrix products: the prefix is read once for the whole batch, never expanded over it.

The prefix is one unmasked attention of all (batch, group, q_len) rows of a key head. Its softmax then joins that over
the own keys as one key more, whose score is the prefix's log-sum-exp and whose value is the prefix's output.
"""

from __future__ import annotations

from math import isfinite

import torch

from ..bottleneck.plain import attend
from .reference import visible


def forward(
    q: torch.Tensor,
    shared_k: torch.Tensor,
    shared_v: torch.Tensor,
    own_k: torch.Tensor,
    own_v: torch.Tensor,
    own_lengths: torch.Tensor,
    own_starts: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Return out like q. Arguments as in ``reference.forward``."""
    if q.numel() == 0:
        return q.new_empty(q.shape)
    queries = q.reshape(len(q), len(shared_k), -1, q.shape[-1])
    prefix, lse = _attend_prefix(queries, shared_k, shared_v, scale)
    keys, values, seen = _own_rows(own_k, own_v, own_lengths, own_starts, q.shape[2])
    scores = (queries.to(lse.dtype) * scale) @ keys.to(lse.dtype).mT
    if seen is not None:
        scores = scores.view(*q.shape[:3], -1).masked_fill_(~seen, -torch.inf).view(scores.shape)
    if shared_k.shape[1] == 0:  # a row without own keys has nothing but the empty prefix, whose output is zeros
        lse = torch.where((scores > -torch.inf).any(-1), -torch.inf, 0.0).to(lse.dtype)
    weights = torch.cat([scores, lse[..., None]], -1).softmax(-1)
    own = _mix(weights[..., :-1], values.to(lse.dtype), seen)
    return torch.addcmul(own, weights[..., -1:], prefix.to(lse.dtype)).to(q.dtype).view(q.shape)


def _attend_prefix(
    queries: torch.Tensor, shared_k: torch.Tensor, shared_v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (batch, kv_heads, rows, head_dim) to out like them and lse (batch, kv_heads, rows)."""
    batch, kv_heads, rows, head_dim = queries.shape
    if shared_k.shape[1] == 0:
        wide = torch.promote_types(queries.dtype, torch.float32)
        return torch.zeros_like(queries), queries.new_zeros(queries.shape[:3], dtype=wide)
    packed = queries.transpose(0, 1).reshape(kv_heads, 1, batch * rows, head_dim)
    out, lse = attend(packed, shared_k[:, None], shared_v[:, None], False, scale)
    return out.view(kv_heads, batch, rows, head_dim).transpose(0, 1), lse.view(kv_heads, batch, rows).transpose(0, 1)


def _own_rows(
    own_k: torch.Tensor, own_v: torch.Tensor, own_lengths: torch.Tensor, own_starts: torch.Tensor | None, q_len: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Own keys and values cut to the rows in use, and who sees them, (batch, 1, q_len, rows), or None for all.

    Away from the CPU the lengths are not read, which would wait for the device.
    """
    first, last, alike = 0, own_k.shape[2], False
    if own_lengths.device.type == "cpu":
        lengths = own_lengths.tolist()
        starts = [0] * len(lengths) if own_starts is None else own_starts.tolist()
        stops = [start + length for start, length in zip(starts, lengths, strict=True)]
        first, last = min(starts), max(stops)
        alike = q_len == 1 and first == max(starts) and last == min(stops)
    rows = slice(first, last)
    seen = None if alike else visible(own_lengths, own_starts, q_len, own_k.shape[2])[:, None, :, rows]
    return own_k[:, :, rows], own_v[:, :, rows], seen


def _mix(weights: torch.Tensor, values: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Weighted sum of own values; what lies outside an own length does not count, not even nan times zero."""
    if seen is None:
        return weights @ values
    if values.device.type == "cpu":  # as a rule the sum is finite, and no values need copying
        mixed = weights @ values
        if isfinite(mixed.sum()):
            return mixed
    return weights @ values.masked_fill(~seen[:, :, -1, :, None], 0.0)
