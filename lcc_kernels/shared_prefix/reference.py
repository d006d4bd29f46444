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
        own_lengths, own_starts: (batch,), see ``hidden``.

    Returns:
        out like q.
    """
    places = torch.arange(own_k.shape[2], device=q.device)
    own = ~hidden(own_lengths, own_starts, q.shape[2], places)
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


def hidden(
    own_lengths: torch.Tensor, own_starts: torch.Tensor | None, q_len: int, places: torch.Tensor
) -> torch.Tensor:
    """Which of the own rows ``places`` (n,) each query does not see, (batch, q_len, n) bool.

    Sequence b owns the rows own_starts[b] ... own_starts[b] + own_lengths[b] - 1 and its queries are the last q_len
    of them: query i sees the own rows up to own_starts[b] + own_lengths[b] - q_len + i.
    """
    stops = own_lengths if own_starts is None else own_starts + own_lengths
    last = stops[:, None] - torch.arange(q_len, 0, -1, device=stops.device)
    later = places > last[..., None]
    return later if own_starts is None else later | (places < own_starts[:, None, None])
