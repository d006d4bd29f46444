"""Which tiles a layout asks of the Triton kernels: plain integers from the spans, invisible tiles never listed.

Tiles never cross a *section*. Sections keep rows that see the context in other tiles than rows that must not be touched
by it, while short segments of one document do share tiles.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from struct import iter_unpack

import torch

from .layout import as_bytes
from .tiles import Tiles

SPLIT_ROWS = 2048  # segment rows that one program reduces into a buffer tile, about a tile's own causal work at 2k
SPLITS = 8  # at most, so that partial sums stay below the gradients themselves
RECENT = 64  # layouts whose schedules are remembered

Span = tuple[int, int, int, int]  # start, stop, shared start, shared stop


@dataclass(frozen=True)
class Schedule:
    """int32 tables on the device, a row a program, the longest first.

    Attributes:
        row_start: (total,) the first row of each row's span.
        query: (tiles, 6) q start and stop, keys seen whole by every row from and to (from there to q stop they need the
            mask), shared start and stop; for ``forward``.
        grad_q: the same for the tiles of the query gradient.
        grad_kv: (tiles, 6) k start and stop, rows from, masked to, to, and slot: -1 to write the gradient itself,
            otherwise the partial sum to write.
        reduce: (tiles, 4) k start and stop, slots from and to, whose sum is the gradient.
        slots: partial sums in all.
    """

    row_start: torch.Tensor
    query: torch.Tensor
    grad_q: torch.Tensor
    grad_kv: torch.Tensor
    reduce: torch.Tensor
    slots: int


Key = tuple[bytes, Tiles, torch.device]  # spans as int64 bytes, which hash fast when there are thousands

_recent: dict[tuple[Key, int], Schedule] = {}  # and the stream that the tables are uploaded and freed on; newest last
_captured: dict[Key, Schedule] = {}  # for ever: a graph reads its tables whenever it is replayed


def schedule(spans: torch.Tensor, tiles: Tiles, device: torch.device) -> Schedule:
    """The programs of ``BottleneckLayout.spans`` under ``tiles``; those of recent layouts are remembered.

    Raises:
        RuntimeError: a CUDA graph is being captured and the layout is not among the recent ones.
    """
    key = as_bytes(spans), tiles, device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _for_a_graph(key)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    plan = _recent.pop((key, stream), None) or _schedule(*key)
    _recent[key, stream] = plan
    if len(_recent) > RECENT:
        del _recent[next(iter(_recent))]
    return plan


def _for_a_graph(key: Key) -> Schedule:
    """A schedule of any stream: nothing can be uploaded during a capture, and its start waits for what was."""
    if key not in _captured:
        known = [plan for (other, _), plan in _recent.items() if other == key]
        if not known:
            raise RuntimeError(
                "bottleneck_attention: a CUDA graph cannot capture a layout that is new: run it once before the capture"
            )
        _captured[key] = known[0]
    return _captured[key]


def _schedule(packed: bytes, tiles: Tiles, device: torch.device) -> Schedule:
    """``schedule`` of what a key holds."""
    spans: tuple[Span, ...] = tuple(iter_unpack("=4q", packed))
    lengths = torch.tensor([stop - start for start, stop, *_ in spans])
    row_start = torch.tensor([span[0] for span in spans], dtype=torch.int32).repeat_interleave(lengths)
    queries, grads = (query_tiles(spans, tile.rows, tile.keys) for tile in (tiles.forward, tiles.grad_q))
    keys, sums = key_tiles(spans, tiles.grad_kv.rows, tiles.grad_kv.keys)
    tables = [row_start, _table(queries, 6), _table(grads, 6), _table(keys, 6), _table(sums, 4)]
    row_start, query, grad_q, grad_kv, reduce = _upload(tables, device)
    return Schedule(row_start, query, grad_q, grad_kv, reduce, max((slot_stop for *_, slot_stop in sums), default=0))


def _table(rows: list[tuple[int, ...]], columns: int) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32).view(-1, columns)


def _upload(tables: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tables of int32 on the device, in one copy from pinned memory, which does not wait for the GPU."""
    numbers = torch.cat([table.flatten() for table in tables])
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    parts = numbers.to(device, non_blocking=True).split([table.numel() for table in tables])
    return [part.view(table.shape) for part, table in zip(parts, tables, strict=True)]


def query_tiles(spans: tuple[Span, ...], rows: int, keys: int) -> list[tuple[int, ...]]:
    """``Schedule.query`` for tiles of ``rows`` by ``keys``."""
    starts = [span[0] for span in spans]
    table = []
    for section_start, section_stop, *shared in _sections(spans):
        for start in range(section_start, section_stop, rows):
            stop = min(start + rows, section_stop)
            first, last = (starts[bisect_right(starts, row) - 1] for row in (start, stop - 1))
            whole = (start - first) // keys * keys if first == last else 0
            table.append((start, stop, first, first + whole, *shared))
    return sorted(table, key=lambda tile: tile[2] - tile[1] + tile[4] - tile[5])


def key_tiles(spans: tuple[Span, ...], rows: int, keys: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """``Schedule.grad_kv`` and ``Schedule.reduce`` for tiles of ``keys`` by ``rows``."""
    starts = [span[0] for span in spans]
    readers = {(first, last): (start, stop) for start, stop, first, last in _sections(spans) if first < last}
    table: list[tuple[int, ...]] = []
    reduce: list[tuple[int, ...]] = []
    slots = 0
    for interval in _key_sections(spans, list(readers)):
        splits = _splits(*readers[interval], rows) if interval in readers else []
        for start in range(*interval, keys):
            stop = min(start + keys, interval[1])
            first, last = (spans[bisect_right(starts, row) - 1] for row in (start, stop - 1))
            diagonal = start + -(-(stop - start) // rows) * rows
            masked = min(diagonal, last[1]) if first == last else last[1]
            table.append((start, stop, start, masked, last[1], slots if splits else -1))
            table += [(start, stop, lo, lo, hi, slots + 1 + number) for number, (lo, hi) in enumerate(splits)]
            if splits:
                reduce.append((start, stop, slots, slots + 1 + len(splits)))
                slots += 1 + len(splits)
    return sorted(table, key=lambda tile: tile[2] - tile[4]), reduce


def _sections(spans: tuple[Span, ...]) -> list[Span]:
    """Spans, those that follow one another and share an interval taken together."""
    sections: list[Span] = []
    for span in spans:
        if sections and span[2] < span[3] and sections[-1][2:] == span[2:]:
            sections[-1] = (sections[-1][0], *span[1:])
        else:
            sections.append(span)
    return sections


def _key_sections(spans: tuple[Span, ...], intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The row cut into shared intervals and, between them, sections."""
    edges = {edge for start, stop, *_ in _sections(spans) for edge in (start, stop)}
    for start, stop in intervals:
        edges -= {span[0] for span in spans if start < span[0] < stop}
        edges |= {start, stop}
    return list(pairwise(sorted(edges)))


def _splits(start: int, stop: int, rows: int) -> list[tuple[int, int]]:
    """Cut the rows that read a shared interval into whole tiles' worth for one program each."""
    step = max(SPLIT_ROWS, -(-(stop - start) // SPLITS))
    step = -(-step // rows) * rows
    return [(first, min(first + step, stop)) for first in range(start, stop, step)]
