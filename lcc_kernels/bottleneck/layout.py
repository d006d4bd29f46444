"""Who sees whom in a packed row [P | C | B | P' | seg1 | seg2 | ...]: the one place that says so.

Every rule of the mask reduces to *spans*. A span is a run of rows that is causal over itself and may besides see one
*shared* interval of earlier rows, whole. [P C B] is a span, P' is a span, each segment is a span, and what the
segments of a document share is [B P'], which is contiguous because P' follows B.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import string_at
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Document:
    """One document's lengths and its first row; the slices are rows of the packed row.

    ``prefix`` P, ``context`` C, ``buffer`` B and each entry of ``segments`` are token counts; ``keep_prefix`` puts P',
    a copy of P that the segments see, behind B.
    """

    prefix: int
    context: int
    buffer: int
    segments: tuple[int, ...] = ()
    keep_prefix: bool = True
    start: int = 0

    def __post_init__(self) -> None:
        lengths = (self.prefix, self.context, self.buffer, *self.segments)
        if any(not isinstance(length, int) or length < 0 for length in lengths):
            raise ValueError(f"token counts must be integers of at least 0; got {lengths}")

    @property
    def context_rows(self) -> slice:
        """Rows of C."""
        return slice(self.start + self.prefix, self.start + self.prefix + self.context)

    @property
    def buffer_rows(self) -> slice:
        """Rows of B."""
        return slice(self.context_rows.stop, self.context_rows.stop + self.buffer)

    @property
    def copy_rows(self) -> slice:
        """Rows of P', empty without ``keep_prefix``."""
        return slice(self.buffer_rows.stop, self.buffer_rows.stop + self.prefix * self.keep_prefix)

    @property
    def segment_rows(self) -> tuple[slice, ...]:
        """Rows of each segment."""
        edges = list(accumulate(self.segments, initial=self.copy_rows.stop))
        return tuple(map(slice, edges[:-1], edges[1:]))

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.copy_rows.stop + sum(self.segments)

    def spans(self) -> list[tuple[int, int, int, int]]:
        """(start, stop, shared start, shared stop) of each non-empty span, in row order."""
        shared = (self.buffer_rows.start, self.copy_rows.stop)
        own = [(self.start, self.buffer_rows.stop, 0, 0), (self.copy_rows.start, self.copy_rows.stop, 0, 0)]
        own += [(rows.start, rows.stop, *shared) for rows in self.segment_rows]
        return [span for span in own if span[0] < span[1]]

    def position_ids(self) -> torch.Tensor:
        """Positions of identity 7 (docs/glossary.md): (tokens,) int64."""
        behind = self.prefix + self.context + self.buffer
        copy = torch.arange(self.context, self.context + self.copy_rows.stop - self.copy_rows.start)
        return torch.cat([torch.arange(behind), copy, *(behind + torch.arange(length) for length in self.segments)])


@dataclass(frozen=True, init=False)
class BottleneckLayout:
    """The context-isolated mask of LCC section 3.2 as an immutable value, built from lengths alone.

    Rows are [P | C | B | P' | seg1 | seg2 | ...], P' there exactly when ``keep_prefix``. P, C and B are causal over
    one another, P' is causal over itself, and a segment row sees B, P' and its own segment up to itself: never C.

    Args:
        prefix, context, buffer: tokens of P, C and B; 0 is legal.
        segments: tokens of each segment; none, zero-length and thousands are legal.
        keep_prefix: whether the segments see (a copy of) the prefix.

    Attributes:
        documents: the documents of the row, each with its slices of rows.
        spans: (spans, 4) int64 on the CPU: start, stop, shared start, shared stop. Spans partition the row in order.

    Raises:
        ValueError: a token count is negative or not an integer.
    """

    documents: tuple[Document, ...]
    spans: torch.Tensor = field(compare=False, repr=False)

    def __init__(
        self, prefix: int, context: int, buffer: int, segments: Sequence[int] = (), keep_prefix: bool = True
    ) -> None:
        self._hold((Document(prefix, context, buffer, tuple(segments), keep_prefix),))

    @classmethod
    def pack(cls, layouts: Sequence[BottleneckLayout]) -> BottleneckLayout:
        """Put the documents of several layouts in one row, isolated from one another."""
        documents: list[Document] = []
        for document in (document for layout in layouts for document in layout.documents):
            documents.append(replace(document, start=documents[-1].stop if documents else 0))
        packed = cls.__new__(cls)
        packed._hold(tuple(documents))
        return packed

    def _hold(self, documents: tuple[Document, ...]) -> None:
        spans = [span for document in documents for span in document.spans()]
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "spans", torch.tensor(spans, dtype=torch.int64).view(-1, 4))

    @property
    def total(self) -> int:
        """Rows in all."""
        return self.documents[-1].stop if self.documents else 0

    def visible(self, q_index: int | torch.Tensor, k_index: int | torch.Tensor) -> torch.Tensor:
        """Whether row ``q_index`` sees row ``k_index``: bool of their broadcast shape, on the CPU.

        Raises:
            IndexError: an index is outside 0 ... total - 1.
        """
        q, k = torch.broadcast_tensors(torch.as_tensor(q_index), torch.as_tensor(k_index))
        if q.numel() and not (min(q.min(), k.min()) >= 0 and max(q.max(), k.max()) < self.total):
            raise IndexError(f"rows must be in 0 ... {self.total - 1}")
        return visible(self.spans, q, k)

    def dense_mask(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The whole mask, for references and tests: (total, total) bool, True where the row sees the column."""
        rows = torch.arange(self.total, device=device)
        return visible(self.spans.to(rows.device), rows[:, None], rows)

    def position_ids(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Rotary positions, (total,) int64: P 0..., B and segments behind C, P' at n ... n + |P| - 1 (identity 7)."""
        positions = [document.position_ids() for document in self.documents]
        return torch.cat(positions or [torch.empty(0, dtype=torch.int64)]).to(device)

    def lora_tokens(self) -> slice:
        """The rows whose projections carry the adapter: C and B of the one document (LCC section 3.3).

        Raises:
            ValueError: the row does not hold exactly one document.
        """
        if len(self.documents) != 1:
            raise ValueError(
                f"the row holds {len(self.documents)} documents: take context_rows and buffer_rows of each"
            )
        (document,) = self.documents
        return slice(document.context_rows.start, document.buffer_rows.stop)


def visible(spans: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Whether rows ``q`` see rows ``k`` (same device, broadcastable, int64) under ``spans`` (spans, 4): bool."""
    if len(spans) == 0:
        return torch.zeros(torch.broadcast_shapes(q.shape, k.shape), dtype=torch.bool, device=q.device)
    span = spans[torch.searchsorted(spans[:, 0].contiguous(), q.contiguous(), right=True) - 1]
    start, _, shared_start, shared_stop = span.unbind(-1)
    return (start <= k) & (k <= q) | (shared_start <= k) & (k < shared_stop)


def as_bytes(spans: torch.Tensor) -> bytes:
    """``spans`` (spans, 4) as the bytes of their int64 numbers, which hash fast when there are thousands."""
    spans = spans.contiguous()
    return string_at(spans.data_ptr(), spans.nbytes)


def shared_reads(spans: torch.Tensor) -> list[tuple[slice, slice]]:
    """(rows, the interval that they all see) of each document under ``spans``; its segments' rows are contiguous."""
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    for start, stop, *interval in spans.tolist():
        if interval[0] < interval[1]:
            shared = (interval[0], interval[1])
            rows[shared] = (rows.get(shared, (start, stop))[0], stop)
    return [(slice(*where), slice(*shared)) for shared, where in rows.items()]
