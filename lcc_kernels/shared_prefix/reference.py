"""Readable shared-prefix attention: prefix and own rows side by side under a dense mask, in float32 or better."""

from __future__ import annotations

import torch


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
    """Masked softmax attention over [shared | own]; a row that sees nothing gives zeros.

    Args:
        q: (batch, heads, q_len, head_dim).
        shared_k, shared_v: (kv_heads, S, head_dim).
        own_k, own_v: (batch, kv_heads, max_len, head_dim).
        own_lengths, own_starts: (batch,), see ``visible``.

    Returns:
        out like q.
    """
    own = visible(own_lengths, own_starts, q.shape[2], own_k.shape[2])
    mask = torch.cat([own.new_ones(*own.shape[:2], shared_k.shape[1]), own], -1)[:, None]
    written = mask.any(-2)[..., None]  # rows outside an own length may hold anything, and 0 * nan is nan
    keys, values = (
        torch.cat([shared.expand(len(q), -1, -1, -1), own], 2)
        .masked_fill(~written, 0.0)
        .repeat_interleave(q.shape[1] // len(shared), 1)
        .to(torch.promote_types(q.dtype, torch.float32))
        for shared, own in ((shared_k, own_k), (shared_v, own_v))
    )
    scores = (q.to(keys.dtype) @ keys.mT * scale).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).masked_fill(~mask, 0.0)
    return (weights @ values).to(q.dtype)


def visible(own_lengths: torch.Tensor, own_starts: torch.Tensor | None, q_len: int, max_len: int) -> torch.Tensor:
    """Which own rows each query sees, (batch, q_len, max_len) bool.

    Sequence b owns the rows own_starts[b] ... own_starts[b] + own_lengths[b] - 1 and its queries are the last q_len
    of them: query i sees the own rows up to own_lengths[b] - q_len + i, counted from own_starts[b].
    """
    step = torch.arange(q_len, device=own_lengths.device) - q_len
    last = (own_lengths[:, None] + step)[..., None]
    place = torch.arange(max_len, device=own_lengths.device)
    if own_starts is None:
        return place <= last
    own = place - own_starts[:, None, None]
    return (own >= 0) & (own <= last)
