"""The one object that says which sequence sees what, from the public op down to the kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PrefixBatch(NamedTuple):
    """Sequences and the prefixes that they share, in the order of the op's schema.

    Sequence b sees the rows shared_starts[b] ... shared_starts[b] + shared_lengths[b] - 1 of ``shared_k`` and
    ``shared_v``, its prefix. It owns the rows own_starts[b] ... own_starts[b] + own_lengths[b] - 1 of ``own_k`` and
    ``own_v``, and its queries are the last q_len of them: query i sees the whole prefix and the own rows up to
    own_starts[b] + own_lengths[b] - q_len + i. Every layer makes one for every token: hence a tuple, which is made in a
    fraction of a frozen dataclass's time.

    Attributes:
        q: (batch, heads, q_len, head_dim).
        shared_k, shared_v: (kv_heads, S, head_dim), all prefixes.
        own_k, own_v: (batch, kv_heads, max_len, head_dim).
        own_lengths: (batch,) int32 or int64.
        own_starts: likewise; None is zeros.
        shared_lengths: likewise; None is S.
        shared_starts: likewise; None is zeros.
        shared_bias: (kv_heads, S) float32, added to the scores; a key with -inf is not seen. None is zeros.
        scale: factor of the scores.
        return_lse: whether the log-sum-exp of each query's scores is wanted.
        sinks: how many of a sequence's first keys the entropy leaves out; None if no entropy is wanted.
    """

    q: torch.Tensor
    shared_k: torch.Tensor
    shared_v: torch.Tensor
    own_k: torch.Tensor
    own_v: torch.Tensor
    own_lengths: torch.Tensor
    own_starts: torch.Tensor | None
    shared_lengths: torch.Tensor | None
    shared_starts: torch.Tensor | None
    shared_bias: torch.Tensor | None
    scale: float
    return_lse: bool = False
    sinks: int | None = None

    def outputs(self) -> list[torch.Tensor]:
        """Out like q, and (batch, heads, q_len) float32 or better for each of lse and entropy that is wanted; empty."""
        out = self.q.new_empty(self.q.shape)
        extra = self.return_lse + (self.sinks is not None)
        if not extra:
            return [out]
        wide = torch.promote_types(self.q.dtype, torch.float32)
        return [out, *(out.new_empty(out.shape[:3], dtype=wide) for _ in range(extra))]

    def part(self, some: slice | list[int]) -> PrefixBatch:
        """Some of the sequences."""
        rows = self.own_starts, self.shared_lengths, self.shared_starts
        own_starts, shared_lengths, shared_starts = (None if x is None else x[some] for x in rows)
        return self._replace(
            q=self.q[some], own_k=self.own_k[some], own_v=self.own_v[some], own_lengths=self.own_lengths[some],
            own_starts=own_starts, shared_lengths=shared_lengths, shared_starts=shared_starts,
        )  # fmt: skip

    def over(self, first: int, stop: int) -> PrefixBatch:
        """The same sequences, all of which have the rows ``first`` ... ``stop - 1`` of the prefixes for theirs."""
        rows = slice(first, stop)
        bias = None if self.shared_bias is None else self.shared_bias[:, rows]
        k, v = self.shared_k[:, rows], self.shared_v[:, rows]
        return self._replace(shared_k=k, shared_v=v, shared_lengths=None, shared_starts=None, shared_bias=bias)

    def hidden(self, places: torch.Tensor) -> torch.Tensor:
        """Which of the own rows ``places`` (n,) each query does not see, (batch, q_len, n) bool."""
        starts, q_len = self.own_starts, self.q.shape[2]
        stops = (self.own_lengths if starts is None else starts + self.own_lengths)[:, None, None]
        if q_len > 1:  # the last query sees all own rows, each one before it a row less
            stops = stops - torch.arange(q_len - 1, -1, -1, device=stops.device)[:, None]
        later = places >= stops
        return later if starts is None else later | (places < starts[:, None, None])

    def elsewhere(self, places: torch.Tensor) -> torch.Tensor:
        """Which of the shared rows ``places`` (n,) are not of each sequence's prefix, (batch, n) bool."""
        assert self.shared_lengths is not None
        lengths, starts = self.shared_lengths[:, None], self.shared_starts
        if starts is None:
            return places >= lengths
        return (places < starts[:, None]) | (places >= starts[:, None] + lengths)

    def rows_in_use(self) -> list[tuple[int, int]]:
        """(first own row, own rows) of each sequence, read off the device."""
        return _read(self.own_starts, self.own_lengths)

    def prefixes(self) -> list[tuple[int, int]]:
        """(first row, rows) of each sequence's prefix, read off the device."""
        if self.shared_lengths is None:
            return [(0, self.shared_k.shape[1])] * len(self.q)
        return _read(self.shared_starts, self.shared_lengths)


def _read(starts: torch.Tensor | None, lengths: torch.Tensor) -> list[tuple[int, int]]:
    numbers = lengths.tolist()
    return list(zip([0] * len(numbers) if starts is None else starts.tolist(), numbers, strict=True))
