"""Random batches over one prefix, everything outside an own length poisoned, and what plain torch makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 0.3


@dataclass(frozen=True)
class Batch:
    """Arguments of the op; ``starts`` None for no left padding."""

    q: torch.Tensor
    shared: tuple[torch.Tensor, torch.Tensor]
    own: tuple[torch.Tensor, torch.Tensor]
    lengths: torch.Tensor
    starts: torch.Tensor | None

    def ours(self, backend: str) -> torch.Tensor:
        arguments = self.q, *self.shared, *self.own, self.lengths
        return lk.shared_prefix_attention(*arguments, SCALE, backend, own_starts=self.starts)

    def double(self) -> Batch:
        """The same numbers in float64."""
        shared, own = (tuple(x.double() for x in pair) for pair in (self.shared, self.own))
        return replace(self, q=self.q.double(), shared=shared, own=own)


def batch(
    lengths: tuple[int, ...],
    *,
    shared: int = 19,
    heads: tuple[int, int] = (4, 2),
    q_len: int = 1,
    head_dim: int = 32,
    starts: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    spare: int = 3,
) -> Batch:
    """One sequence a length, with ``spare`` rows of room; nothing is contiguous but the last dimension."""
    generator = torch.Generator().manual_seed(0)
    first = starts or (0,) * len(lengths)
    room = max(start + length for start, length in zip(first, lengths, strict=True)) + spare
    count, kv_heads = len(lengths), heads[1]
    shapes = [(count, q_len, heads[0], head_dim), *[(shared, kv_heads, head_dim)] * 2]
    shapes += [(count, room, kv_heads, head_dim)] * 2
    made = (torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for s in shapes)
    q, *keys_and_values = (x.transpose(-3, -2) for x in made)
    for own in keys_and_values[2:]:
        for number, (start, length) in enumerate(zip(first, lengths, strict=True)):
            own[number, :, :start] = own[number, :, start + length :] = torch.nan
    ends = torch.tensor(lengths, device=DEVICE)
    begins = None if starts is None else torch.tensor(starts, device=DEVICE)
    return Batch(q, tuple(keys_and_values[:2]), tuple(keys_and_values[2:]), ends, begins)


def one_by_one(inputs: Batch) -> torch.Tensor:
    """Same-dtype torch, sequence by sequence, over a copy of the prefix in front of what each query may see."""
    out = torch.zeros_like(inputs.q)
    q_len = inputs.q.shape[2]
    for number, length in enumerate(inputs.lengths.tolist()):
        start = 0 if inputs.starts is None else int(inputs.starts[number])
        for query in range(q_len):
            rows = slice(start, start + max(0, length - q_len + query + 1))
            pairs = zip(inputs.shared, inputs.own, strict=True)
            keys, values = (torch.cat([shared, own[number, :, rows]], 1)[None] for shared, own in pairs)
            if keys.shape[2]:
                row = inputs.q[number, None, :, query, None]
                seen = scaled_dot_product_attention(row, keys, values, scale=SCALE, enable_gqa=True)
                out[number, :, query] = seen[0, :, 0]
    return out
