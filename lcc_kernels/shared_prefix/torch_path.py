"""Shared-prefix attention in matrix products: the prefix is read once for the whole batch, never expanded over it.

All (batch, group, q_len) rows of a key head attend to the prefix in one product. A short prefix stands beside the own
keys in one softmax. A long one is attended to on its own, and its softmax joins that over the own keys as one key
more, whose score is the prefix's log-sum-exp and whose value is the prefix's output.
"""

from __future__ import annotations

from math import isfinite

import torch

from .. import plain_attention
from .batch import PrefixBatch

SHORT_PREFIX = 256  # keys up to which a fused attention costs more than it saves in scores written and read


def forward(b: PrefixBatch) -> torch.Tensor:
    """Return out like q."""
    q = b.q
    if q.numel() == 0:
        return q.new_empty(q.shape)
    scores = q.shape[1] * q.shape[2] * (min(b.shared_k.shape[1], SHORT_PREFIX) + b.own_k.shape[2])  # of a sequence
    at_once = max(1, plain_attention.BLOCK_SCORES // max(1, scores))
    if at_once >= len(q):
        return _forward(b)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for first in range(0, len(q), at_once):
        some = slice(first, first + at_once)
        out[some] = _forward(b.part(some))
    return out


def _forward(b: PrefixBatch) -> torch.Tensor:
    """``forward`` of sequences few enough to hold all their scores at once."""
    q, shared_k, shared_v = b.q, b.shared_k, b.shared_v
    wide = torch.promote_types(q.dtype, torch.float32)
    kv_heads, shared_len, head_dim = shared_k.shape
    queries = q.reshape(len(q), kv_heads, -1, head_dim)
    scaled = queries.to(wide) * b.scale
    if shared_len <= SHORT_PREFIX:
        shared_scores = _pack(scaled) @ shared_k.to(wide).mT
    else:
        prefix, lse = plain_attention.attend(
            _pack(queries)[:, None], shared_k[:, None], shared_v[:, None], False, b.scale
        )
        shared_scores = lse[:, 0, :, None]

    keys, values, unseen = _own_rows(b)
    own_scores = scaled @ keys.to(wide).mT
    if unseen is not None:
        _as_heads(own_scores, q).masked_fill_(unseen, -torch.inf)
    weights = torch.cat([_unpack(shared_scores, len(q)), own_scores], -1).softmax(-1)
    if shared_len == 0 and unseen is not None:  # a row that sees nothing has no softmax
        _as_heads(weights, q).masked_fill_(unseen, 0.0)

    columns = shared_scores.shape[-1]
    shared_weights = _pack(weights[..., :columns])
    shared = shared_weights @ shared_v.to(wide) if shared_len <= SHORT_PREFIX else shared_weights * prefix[:, 0]
    out = _mix(weights[..., columns:], values.to(wide), unseen) + _unpack(shared, len(q))
    return out.to(q.dtype).view(q.shape)


def _pack(rows: torch.Tensor) -> torch.Tensor:
    """(batch, kv_heads, rows, n) to (kv_heads, batch * rows, n)."""
    return rows.transpose(0, 1).flatten(1, 2)


def _unpack(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """(kv_heads, batch * rows, n) to (batch, kv_heads, rows, n)."""
    return rows.view(len(rows), batch, rows.shape[1] // batch, rows.shape[2]).transpose(0, 1)


def _as_heads(rows: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(batch, kv_heads, group * q_len, n) as (batch, heads, q_len, n)."""
    return rows.view(*q.shape[:3], rows.shape[-1])


def _own_rows(b: PrefixBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Own keys and values cut to the rows in use, and which a query does not see, (batch, 1, q_len, rows), if any.

    Away from the CPU the lengths are not read, which would wait for the device.
    """
    first, last, alike = 0, b.own_k.shape[2], False
    if b.own_lengths.device.type == "cpu":
        starts, lengths = zip(*b.rows_in_use(), strict=True)
        stops = [start + length for start, length in zip(starts, lengths, strict=True)]
        first, last = min(starts), max(stops)
        alike = b.q.shape[2] == 1 and first == max(starts) and last == min(stops)
    rows = slice(first, last)
    unseen = None if alike else b.hidden(torch.arange(first, last, device=b.own_k.device))[:, None]
    return b.own_k[:, :, rows], b.own_v[:, :, rows], unseen


def _mix(weights: torch.Tensor, values: torch.Tensor, unseen: torch.Tensor | None) -> torch.Tensor:
    """Weighted sum of own values; what lies outside an own length does not count, not even nan times zero."""
    if unseen is None:
        return weights @ values
    if values.device.type == "cpu":  # as a rule the sum is finite, and no values need copying
        mixed = weights @ values
        if isfinite(mixed.sum()):
            return mixed
    return weights @ values.masked_fill(unseen[:, :, -1, :, None], 0.0)
