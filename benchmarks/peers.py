"""Every way a user has today of writing the bottleneck mask, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk
from benchmarks.cases import AttentionCase

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Peer:
    """``prepare`` builds the attention of a case on a device; ``refuses`` says why it cannot, or None."""

    prepare: Callable[[AttentionCase, str], Attend]
    refuses: Callable[[AttentionCase, str], str | None] = lambda case, device: None


def _kernel(backend: str) -> Peer:
    def prepare(case: AttentionCase, device: str) -> Attend:
        return partial(lk.bottleneck_attention, layout=case.layout, backend=backend)

    def refuses(case: AttentionCase, device: str) -> str | None:
        return lk.available_backends("bottleneck_attention")[backend]

    return Peer(prepare, refuses)


def _dense_mask(case: AttentionCase, device: str) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=case.layout.dense_mask(device), enable_gqa=True)

    return attend


def _dense_mask_refuses(case: AttentionCase, device: str) -> str | None:
    return f"{case.layout.total} rows squared do not fit" if case.layout.total > 50_000 else None


def _flex_attention(case: AttentionCase, device: str) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows = torch.arange(case.layout.total)
    spans = case.layout.spans
    start, _, first, stop = (
        column.to(device) for column in spans[torch.searchsorted(spans[:, 0].contiguous(), rows, right=True) - 1].T
    )

    def mask(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (start[q] <= k) & (k <= q) | (first[q] <= k) & (k < stop[q])

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    total = case.layout.total
    block_mask = torch.compile(create_block_mask)(mask, None, None, total, total, device=device)
    return partial(compiled, block_mask=block_mask, enable_gqa=True)


def _flex_refuses(case: AttentionCase, device: str) -> str | None:
    return None if device == "cuda" else "FlexAttention has no backward on the CPU"


PEERS = {
    **{name: _kernel(name) for name in lk.available_backends("bottleneck_attention") if name != "reference"},
    "dense_mask_sdpa": Peer(_dense_mask, _dense_mask_refuses),
    "flex_attention": Peer(_flex_attention, _flex_refuses),
}
