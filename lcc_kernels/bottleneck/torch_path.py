"""Bottleneck attention as plain attentions merged by log-sum-exp (identity 5: docs/glossary.md), on any device.

A span's rows attend causally to the span; segment rows also attend, unmasked, to the interval that they share. Long
spans are attended to where they lie. Short ones are gathered into batches of similar length, padded at the end where
the causal mask hides the padding, so that thousands of segments cost a few dozen calls.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from struct import iter_unpack

import torch

from ..plain_attention import attend, attend_backward, merge
from .layout import as_bytes, shared_reads

LONG_SPAN = 512  # rows from which a call of its own costs less than a gathered copy
PADDING = 128  # rows that cost less than a batch of their own
SMALL_COPY = 2**20  # elements of queries gathered at once whatever the number of threads: 4 MB in float32


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out like q and lse (batch, heads, total). Arguments as in ``reference.forward``."""
    queries, keys, values = _grouped(q, k, v)
    out = torch.zeros_like(queries, memory_format=torch.contiguous_format)
    lse = queries.new_zeros(queries.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    pieces = _pieces(as_bytes(spans), q.device)
    for heads, group in _head_slices(queries):
        inputs = (queries[heads, group], keys[heads], values[heads])
        _forward(*inputs, out[heads, group], lse[heads, group], pieces, scale)
    return out.view(q.shape), lse.view(q.shape[:3])


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    spans: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v, each piece's share given the merged out and lse. Shapes as in ``forward``."""
    queries, keys, values = _grouped(q, k, v)
    above, merged, merged_lse = grad.reshape(queries.shape), out.view(queries.shape), lse.view(queries.shape[:3])
    grads = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (queries, keys, values)]
    pieces = _pieces(as_bytes(spans), q.device)
    for heads, group in _head_slices(queries):
        rowwise = [x[heads, group] for x in (above, queries, merged, merged_lse)]
        inputs = [*rowwise[:2], keys[heads], values[heads], *rowwise[2:]]
        _backward(inputs, [grads[0][heads, group], grads[1][heads], grads[2][heads]], pieces, scale)
    grad_q, grad_k, grad_v = (x.to(q.dtype) for x in grads)
    return grad_q.view(q.shape), grad_k.view(k.shape), grad_v.view(v.shape)


@lru_cache(maxsize=64)
def _pieces(packed: bytes, device: torch.device) -> _Pieces:
    """The pieces of spans as int64 bytes; those of recent layouts are remembered for the other layers."""
    return _Pieces(torch.tensor(list(iter_unpack("=4q", packed)), dtype=torch.int64).view(-1, 4), device)


class _Pieces:
    """The attentions that a row decomposes into."""

    def __init__(self, spans: torch.Tensor, device: torch.device) -> None:
        rows = spans.tolist()
        self.long = [slice(start, stop) for start, stop, *_ in rows if stop - start >= LONG_SPAN]
        self.short = _batches([(start, stop - start) for start, stop, *_ in rows if stop - start < LONG_SPAN], device)
        self.shared = shared_reads(spans)


def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    pieces: _Pieces,
    scale: float,
) -> None:
    for rows in pieces.long:
        out[:, :, rows], lse[:, :, rows] = attend(q[:, :, rows], k[:, :, rows], v[:, :, rows], True, scale)
    for batch in pieces.short:
        piece, piece_lse = attend(batch.take(q), batch.take(k), batch.take(v), True, scale)
        batch.add(out, piece)
        batch.add(lse, piece_lse)
    for rows, shared in pieces.shared:
        piece, piece_lse = attend(q[:, :, rows], k[:, :, shared], v[:, :, shared], False, scale)
        merge(out[:, :, rows], lse[:, :, rows], piece, piece_lse)


def _backward(inputs: list[torch.Tensor], grads: list[torch.Tensor], pieces: _Pieces, scale: float) -> None:
    """``inputs`` are grad, q, k, v, out and lse; ``grads`` those of q, k and v, zero so far."""
    for batch in pieces.short:
        taken = [batch.take(inputs[0], padding=0.0), *(batch.take(x) for x in inputs[1:])]
        gained = attend_backward(taken, True, scale)
        for whole, piece in zip(grads, gained, strict=True):
            batch.add(whole, piece)
    for rows in pieces.long:
        _gain(inputs, grads, rows, rows, True, scale)
    for rows, shared in pieces.shared:
        _gain(inputs, grads, rows, shared, False, scale)


def _gain(
    inputs: list[torch.Tensor], grads: list[torch.Tensor], rows: slice, keys: slice, causal: bool, scale: float
) -> None:
    """Add the gradients that flow between ``rows`` and ``keys``."""
    seen = (rows, rows, keys, keys, rows, rows)
    gained = attend_backward([x[:, :, where] for x, where in zip(inputs, seen, strict=True)], causal, scale)
    for whole, piece, where in zip(grads, gained, (rows, keys, keys), strict=True):
        whole[:, :, where] += piece


class _Batch:
    """Short spans of similar length, as rows of one padded batch."""

    def __init__(self, spans: list[tuple[int, int]], device: torch.device) -> None:
        start, length = torch.tensor(spans).unbind(-1)
        step = torch.arange(int(length.max()))
        rows = start[:, None] + torch.minimum(step, length[:, None] - 1)
        own = (step < length[:, None]).flatten()
        self.shape = rows.shape
        self.rows, self.own_rows = rows.flatten().to(device), rows.flatten()[own].to(device)
        self.own, self.padding = own.nonzero()[:, 0].to(device), (~own).nonzero()[:, 0].to(device)

    def take(self, whole: torch.Tensor, padding: float | None = None) -> torch.Tensor:
        """(n, group, total, ...) to (n * spans, group, length, ...); padding repeats a span's last row, or a value."""
        picked = whole.index_select(2, self.rows)
        if padding is not None:
            picked.index_fill_(2, self.padding, padding)
        return picked.unflatten(2, self.shape).transpose(1, 2).flatten(0, 1)

    def add(self, whole: torch.Tensor, batch: torch.Tensor) -> None:
        """Add a batch's own rows to those that ``take`` read."""
        rows = batch.unflatten(0, (-1, self.shape[0])).transpose(1, 2).flatten(2, 3)
        whole.index_add_(2, self.own_rows, rows.index_select(2, self.own).to(whole.dtype))


def _grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fold heads to (batch * kv_heads, group, total, head_dim), group 1 for k and v."""
    batch, kv_heads = k.shape[:2]
    return tuple(x.reshape(batch * kv_heads, x.shape[1] // kv_heads, *x.shape[2:]) for x in (q, k, v))  # type: ignore[return-value]


def _head_slices(queries: torch.Tensor) -> list[tuple[slice, slice]]:
    """(key/value heads, group) slices: on the CPU, of a large row, no more heads at a time than threads.

    That keeps temporaries small; of a small row they are small anyway, and fewer calls cost less.
    """
    heads, group, total, head_dim = queries.shape
    at_once = heads * group
    if queries.device.type == "cpu":
        at_once = min(at_once, max(torch.get_num_threads(), SMALL_COPY // max(1, total * head_dim)))
    members, whole = min(at_once, group), max(1, at_once // group)
    return [
        (slice(head, head + whole), slice(member, member + members))
        for head in range(0, heads, whole)
        for member in range(0, group, members)
    ]


def _batches(spans: list[tuple[int, int]], device: torch.device) -> list[_Batch]:
    """Batches of short spans (start, length): padded by a quarter at most, or by few rows in all."""
    alike: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for start, length in spans:
        quarter = 1 << max(0, length.bit_length() - 3)
        alike[-(-length // quarter) * quarter].append((start, length))
    batches: list[list[tuple[int, int]]] = []
    for _, members in sorted(alike.items()):
        longest = max(length for _, length in members)
        if batches and sum(longest - length for _, length in batches[-1]) <= PADDING:
            batches[-1] += members
        else:
            batches.append(members)
    return [_Batch(members, device) for members in batches]
