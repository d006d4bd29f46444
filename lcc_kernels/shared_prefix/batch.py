"""The one object that says which sequence sees what, from the public op down to the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PrefixBatch(NamedTuple):
    """Sequences that share their first keys and values, in the order of the op's schema.

    Sequence b owns the rows own_starts[b] ... own_starts[b] + own_lengths[b] - 1 of ``own_k`` and ``own_v``, and its
    queries are the last q_len of them: query i sees the whole prefix and the own rows up to
    own_starts[b] + own_lengths[b] - q_len + i. Every layer makes one for every token: hence a tuple, which is made in a
    fraction of a frozen dataclass's time.

    Attributes:
        q: (batch, heads, q_len, head_dim).
        shared_k, shared_v: (kv_heads, S, head_dim).
        own_k, own_v: (batch, kv_heads, max_len, head_dim).
        own_lengths, own_starts: (batch,) int32 or int64; no starts are zeros.
        scale: factor of the scores.
    """

    q: torch.Tensor
    shared_k: torch.Tensor
    shared_v: torch.Tensor
    own_k: torch.Tensor
    own_v: torch.Tensor
    own_lengths: torch.Tensor
    own_starts: torch.Tensor | None
    scale: float

    def part(self, some: slice) -> PrefixBatch:
        """Some of the sequences."""
        own = self.own_k[some], self.own_v[some], self.own_lengths[some]
        starts = None if self.own_starts is None else self.own_starts[some]
        return PrefixBatch(self.q[some], self.shared_k, self.shared_v, *own, starts, self.scale)

    def hidden(self, places: torch.Tensor) -> torch.Tensor:
        """Which of the own rows ``places`` (n,) each query does not see, (batch, q_len, n) bool."""
        starts, q_len = self.own_starts, self.q.shape[2]
        stops = self.own_lengths if starts is None else starts + self.own_lengths
        last = stops[:, None] - torch.arange(q_len, 0, -1, device=stops.device)
        later = places > last[..., None]
        return later if starts is None else later | (places < starts[:, None, None])

    def rows_in_use(self) -> list[tuple[int, int]]:
        """(first own row, own rows) of each sequence, read off the device."""
        lengths = self.own_lengths.tolist()
        starts = [0] * len(lengths) if self.own_starts is None else self.own_starts.tolist()
        return list(zip(starts, lengths, strict=True))
