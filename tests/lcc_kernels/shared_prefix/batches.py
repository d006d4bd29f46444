"""Random batches over shared prefixes, all outside an own length poisoned, and what plain torch makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 0.3


@dataclass(frozen=True)
class Batch:
    """Arguments of the op; ``starts`` None for no left padding, ``prefixes`` None for one that is all sequences'."""

    q: torch.Tensor
    shared: tuple[torch.Tensor, torch.Tensor]
    own: tuple[torch.Tensor, torch.Tensor]
    lengths: torch.Tensor
    starts: torch.Tensor | None
    prefixes: tuple[tuple[int, int], ...] | None = None
    bias: torch.Tensor | None = None

    def ours(self, backend: str, **wanted: Any) -> Any:
        """What the op returns; ``wanted`` are ``return_lse``, ``return_entropy`` and ``sinks``."""
        starts, lengths = (None, None) if self.prefixes is None else torch.tensor(self.prefixes, device=DEVICE).mT
        options = {"own_starts": self.starts, "shared_starts": starts, "shared_lengths": lengths}
        arguments = self.q, *self.shared, *self.own, self.lengths, SCALE, backend
        return lk.shared_prefix_attention(*arguments, **options, shared_bias=self.bias, **wanted)

    def double(self) -> Batch:
        """The same numbers in float64."""
        shared, own = (tuple(x.double() for x in pair) for pair in (self.shared, self.own))
        return replace(self, q=self.q.double(), shared=shared, own=own)

    def seen(self, number: int, query: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values (kv_heads, n, head_dim) that a query sees, and their bias (kv_heads, n)."""
        first, count = (0, self.shared[0].shape[1]) if self.prefixes is None else self.prefixes[number]
        start = 0 if self.starts is None else int(self.starts[number])
        own = max(0, int(self.lengths[number]) - self.q.shape[2] + query + 1)
        prefix, rows = slice(first, first + count), slice(start, start + own)
        keys, values = (
            torch.cat([shared[:, prefix], mine[number, :, rows]], 1)
            for shared, mine in zip(self.shared, self.own, strict=True)
        )
        bias = keys.new_zeros(keys.shape[:2])
        if self.bias is not None:
            bias[:, :count] = self.bias[:, prefix]
        return keys, values, bias


def batch(
    lengths: tuple[int, ...],
    *,
    shared: int = 19,
    heads: tuple[int, int] = (4, 2),
    q_len: int = 1,
    head_dim: int = 32,
    starts: tuple[int, ...] | None = None,
    prefixes: tuple[tuple[int, int], ...] | None = None,
    biased: bool = False,
    dtype: torch.dtype = torch.float32,
    spare: int = 3,
) -> Batch:
    """One sequence a length, with ``spare`` rows of room; no two tensors have the same strides.

    ``prefixes`` are (first row, rows). A bias hides a quarter of the keys.
    """
    generator = torch.Generator().manual_seed(0)
    first = starts or (0,) * len(lengths)
    room = max(start + length for start, length in zip(first, lengths, strict=True)) + spare
    count, kv_heads = len(lengths), heads[1]
    shapes = [(count, q_len, heads[0]), *[(shared, kv_heads)] * 2, *[(count, room, kv_heads)] * 2]
    made = [torch.randn(*s, head_dim + 8 * i, generator=generator).to(DEVICE, dtype) for i, s in enumerate(shapes)]
    q, *keys_and_values = (x[..., :head_dim].transpose(-3, -2) for x in made)
    for own in keys_and_values[2:]:
        for number, (start, length) in enumerate(zip(first, lengths, strict=True)):
            own[number, :, :start] = own[number, :, start + length :] = torch.nan
    bias = torch.randn(shared, kv_heads, generator=generator).to(DEVICE).mT if biased else None
    if bias is not None:
        bias[torch.rand(bias.shape, generator=generator) < 0.25] = -torch.inf
    ends = torch.tensor(lengths, device=DEVICE)
    begins = None if starts is None else torch.tensor(starts, device=DEVICE)
    return Batch(q, tuple(keys_and_values[:2]), tuple(keys_and_values[2:]), ends, begins, prefixes, bias)


def one_by_one(inputs: Batch, sinks: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Out, log-sum-exp and entropy by torch in the inputs' dtype, a query at a time over a copy of what it sees.

    The latter two in float32 or better, (batch, heads, q_len).
    """
    out = torch.zeros_like(inputs.q)
    lse = inputs.q.new_full(inputs.q.shape[:3], -torch.inf, dtype=torch.promote_types(out.dtype, torch.float32))
    entropy = torch.zeros_like(lse)
    group = inputs.q.shape[1] // len(inputs.shared[0])
    for number, query in torch.cartesian_prod(*(torch.arange(n) for n in inputs.q.shape[::2])).tolist():
        keys, values, bias = (x.repeat_interleave(group, 0) for x in inputs.seen(number, query))
        row = inputs.q[number, :, query, None]
        for head in range(len(keys)):
            visible = bias[head] > -torch.inf
            if not visible.any():
                continue
            head_keys, head_values, mask = keys[head, visible], values[head, visible], bias[head, visible]
            seen = scaled_dot_product_attention(row[head], head_keys, head_values, attn_mask=mask[None], scale=SCALE)
            out[number, head, query] = seen[0]
            scores = (row[head].to(lse.dtype) @ head_keys.to(lse.dtype).mT)[0] * SCALE + mask.to(lse.dtype)
            lse[number, head, query] = scores.logsumexp(0)
            counted = scores[torch.arange(len(visible), device=DEVICE)[visible] >= sinks]
            entropy[number, head, query] = torch.special.entr(counted.softmax(0)).sum()
    return out, lse, entropy
