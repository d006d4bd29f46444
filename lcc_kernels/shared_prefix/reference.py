"""Readable shared-prefix attention: prefix and own rows side by side under a dense mask, in float32 or better."""

from __future__ import annotations

import torch

from .batch import PrefixBatch


def forward(b: PrefixBatch) -> torch.Tensor:
    """Masked softmax attention over [shared | own], (batch, heads, q_len, head_dim); what sees nothing gives zeros."""
    own = ~b.hidden(torch.arange(b.own_k.shape[2], device=b.q.device))
    mask = torch.cat([own.new_ones(*own.shape[:2], b.shared_k.shape[1]), own], -1)[:, None]
    written = mask.any(-2)[..., None]  # rows outside an own length may hold anything, and 0 * nan is nan
    keys, values = (
        torch.cat([shared.expand(len(b.q), -1, -1, -1), own], 2)
        .masked_fill(~written, 0.0)
        .repeat_interleave(b.q.shape[1] // len(shared), 1)
        .to(torch.promote_types(b.q.dtype, torch.float32))
        for shared, own in ((b.shared_k, b.own_k), (b.shared_v, b.own_v))
    )
    scores = (b.q.to(keys.dtype) @ keys.mT * b.scale).masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1).masked_fill(~mask, 0.0)
    return (weights @ values).to(b.q.dtype)
