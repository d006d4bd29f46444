"""Readable shared-prefix attention: prefixes and own rows side by side under a dense mask, in float32 or better."""

from __future__ import annotations

import torch

from .batch import PrefixBatch


def forward(b: PrefixBatch) -> list[torch.Tensor]:
    """Masked softmax attention over [shared | own]: out, then lse and entropy if wanted.

    A query that sees nothing gives zeros, lse -inf and entropy 0.
    """
    mask, number = _keys_seen(b)
    written = mask.any(-2)[:, None, :, None]  # rows that no query sees may hold anything, and 0 * nan is nan
    keys, values = (
        torch.cat([shared.expand(len(b.q), -1, -1, -1), own], 2)
        .masked_fill(~written, 0.0)
        .repeat_interleave(b.q.shape[1] // len(shared), 1)
        .to(torch.promote_types(b.q.dtype, torch.float32))
        for shared, own in ((b.shared_k, b.own_k), (b.shared_v, b.own_v))
    )
    scores, mask = b.q.to(keys.dtype) @ keys.mT * b.scale, mask[:, None]
    if b.shared_bias is not None:
        bias = torch.nn.functional.pad(b.shared_bias, (0, b.own_k.shape[2])).to(keys.dtype)
        bias = bias.repeat_interleave(b.q.shape[1] // len(bias), 0)[None, :, None]
        scores, mask = scores + bias.where(mask, 0.0), mask & (bias != -torch.inf)
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = _softmax(scores, mask)
    outputs = [(weights @ values).to(b.q.dtype)]
    if b.return_lse:
        outputs.append(scores.logsumexp(-1))
    if b.sinks is not None:
        outputs.append(torch.special.entr(_softmax(scores, mask & (number >= b.sinks)[:, None, None])).sum(-1))
    return outputs


def _keys_seen(b: PrefixBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Which keys each query sees, (batch, q_len, S + max_len) bool, and their numbers within their sequence, int64.

    The numbers, (batch, S + max_len), count the prefix first and then the own rows.
    """
    shared_len, max_len = b.shared_k.shape[1], b.own_k.shape[2]
    rows, own_rows = (torch.arange(n, device=b.q.device) for n in (shared_len, max_len))
    lengths = torch.full_like(b.own_lengths, shared_len) if b.shared_lengths is None else b.shared_lengths
    starts, own_starts = (torch.zeros_like(lengths) if x is None else x for x in (b.shared_starts, b.own_starts))
    first, stop = (x.clamp(0, shared_len)[:, None] for x in (starts, starts + lengths))
    shared = (rows >= first) & (rows < stop)
    own = ~b.hidden(own_rows)
    own_numbers = (stop - first).clamp(min=0) + own_rows - own_starts.clamp(0, max_len)[:, None]
    seen = torch.cat([shared[:, None].expand(-1, own.shape[1], -1), own], -1)
    return seen, torch.cat([rows - first, own_numbers], -1)


def _softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the keys in ``mask``; zeros where there are none."""
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask, 0.0)
