"""Shared-prefix attention in matrix products: a prefix is read once for all its sequences, never expanded over them.

All (batch, group, q_len) rows of a key head attend to their prefix in one product. Where several prefixes are small,
they attend to all of these at once, and the scores of other sequences' prefixes are masked. A short prefix stands
beside the own keys in one softmax, and so does one whose scores take a bias or give an entropy. A long one is attended
to on its own, and its softmax joins that over the own keys as one key more, whose score is the prefix's log-sum-exp
and whose value is the prefix's output.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

import torch

from .. import plain_attention
from .batch import PrefixBatch

SHORT_PREFIX = 256  # keys up to which a fused attention costs more than it saves in scores written and read
MASKED_SCORES = 2**14  # that take as long as what a prefix costs on its own, on a CPU
FEW_SCORES = 2**13  # whose entropy is quicker from a softmax of its own than from sums over the one that is known


def forward(b: PrefixBatch) -> list[torch.Tensor]:
    """Return out like q, then lse and entropy if wanted.

    Several prefixes are told apart by reading ``shared_lengths`` and ``shared_starts``, wherever they are.
    """
    if b.q.numel() == 0:
        return b.outputs()
    if b.shared_lengths is None and _at_once(b) >= len(b.q):
        return _forward(b)
    if _small(b):
        outputs = _forward(b)
        # A masked key has the weight 0, and 0 * nan is nan; so is what a row without any key gets.
        if isfinite(outputs[0].sum(dtype=torch.float64)):
            return outputs
    outputs = b.outputs()
    for some, part in _parts(b):
        for whole, piece in zip(outputs, _forward(part), strict=True):
            whole[some] = piece
    return outputs


def _small(b: PrefixBatch) -> bool:
    """Whether masking what sequences do not see of several prefixes costs less than taking one prefix at a time."""
    if b.shared_lengths is None or b.sinks is not None or b.q.device.type != "cpu" or _at_once(b) < len(b.q):
        return False
    prefixes = b.prefixes()
    masked = len(prefixes) * b.shared_k.shape[1] - sum(length for _, length in prefixes)
    return b.q.shape[1] * b.q.shape[2] * masked <= MASKED_SCORES * (len(set(prefixes)) - 1)


def _parts(b: PrefixBatch) -> Iterator[tuple[slice | list[int], PrefixBatch]]:
    """Sequences of one prefix, few enough to hold all their scores at once."""
    alike: dict[tuple[int, int], list[int]] = {}
    for number, prefix in enumerate(b.prefixes()):
        alike.setdefault(prefix, []).append(number)
    for (first, length), sequences in alike.items():
        over = b.over(first, first + length)
        step = _at_once(over)
        for start in range(0, len(sequences), step):
            some = _sliced(sequences[start : start + step])
            yield some, over.part(some)


def _sliced(numbers: list[int]) -> slice | list[int]:
    """Ascending numbers as a slice, which copies nothing, if they follow one another."""
    return slice(numbers[0], numbers[-1] + 1) if numbers[-1] - numbers[0] == len(numbers) - 1 else numbers


def _at_once(b: PrefixBatch) -> int:
    """How many sequences' scores may be alive."""
    shared = b.shared_k.shape[1] if _in_one_softmax(b) else 1
    scores = b.q.shape[1] * b.q.shape[2] * (shared + b.own_k.shape[2])  # of a sequence
    return max(1, plain_attention.BLOCK_SCORES // max(1, scores))


def _in_one_softmax(b: PrefixBatch) -> bool:
    several = b.shared_lengths is not None
    return several or b.shared_k.shape[1] <= SHORT_PREFIX or b.shared_bias is not None or b.sinks is not None


def _forward(b: PrefixBatch) -> list[torch.Tensor]:
    """``forward`` of sequences few enough to hold all their scores at once, over one prefix or over all in one."""
    q, shared_k, shared_v = b.q, b.shared_k, b.shared_v
    wide = torch.promote_types(q.dtype, torch.float32)
    kv_heads, shared_len, head_dim = shared_k.shape
    queries = q.reshape(len(q), kv_heads, -1, head_dim)
    scaled = queries.to(wide) * b.scale
    together = _in_one_softmax(b)
    if together:
        shared_scores = _pack(scaled) @ shared_k.to(wide).mT
        if b.shared_bias is not None:
            shared_scores += b.shared_bias[:, None]
    else:
        prefix, lse = plain_attention.attend(
            _pack(queries)[:, None], shared_k[:, None], shared_v[:, None], False, b.scale
        )
        shared_scores = lse[:, 0, :, None]

    first_row, keys, values, unseen = _own_rows(b)
    own_scores = scaled @ keys.to(wide).mT
    if unseen is not None:
        _as_heads(own_scores, q).masked_fill_(unseen, -torch.inf)
    shared_scores = _unpack(shared_scores, len(q))
    if b.shared_lengths is not None:
        shared_scores.masked_fill_(b.elsewhere(torch.arange(shared_len))[:, None, None], -torch.inf)
    scores = torch.cat([shared_scores, own_scores], -1)
    weights = scores.softmax(-1)
    if (shared_len == 0 and unseen is not None) or b.shared_bias is not None:  # a row that sees nothing has no softmax
        weights.masked_fill_(scores == -torch.inf, 0.0)

    columns = shared_scores.shape[-1]
    shared_weights = _pack(weights[..., :columns])
    shared = shared_weights @ shared_v.to(wide) if together else shared_weights * prefix[:, 0]
    out = _mix(weights[..., columns:], values.to(wide), unseen) + _unpack(shared, len(q))
    outputs = [out.to(q.dtype).view(q.shape)]
    if b.return_lse:
        outputs.append(_lse(scores, weights).view(q.shape[:3]))
    if b.sinks is not None:
        hides = unseen is not None or b.shared_bias is not None
        outputs.append(_entropy(scores, weights, *_sinks(b, b.sinks, first_row), hides).view(q.shape[:3]))
    return outputs


def _lse(scores: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Log-sum-exp of scores (..., keys), whose softmax is known: in fewer passes than ``logsumexp``; -inf of none."""
    if not scores.shape[-1]:
        return scores.logsumexp(-1)
    peak = scores.amax(-1)
    return (peak - weights.amax(-1).log_()).masked_fill_(peak == -torch.inf, -torch.inf)


def _sinks(b: PrefixBatch, sinks: int, first_row: int) -> tuple[int, torch.Tensor | None]:
    """How many first columns of [prefix | own rows from ``first_row`` on] are sinks, and which of the others, if any.

    The latter is (batch, 1, 1, columns) bool.
    """
    shared_len = b.shared_k.shape[1]
    if sinks <= shared_len or b.own_starts is None:
        return sinks, None
    rows = torch.arange(first_row, b.own_k.shape[2], device=b.own_k.device)
    return shared_len, (rows < (b.own_starts.clamp(min=0) + (sinks - shared_len))[:, None])[:, None, None]


def _entropy(
    scores: torch.Tensor, weights: torch.Tensor, first: int, sinks: torch.Tensor | None, hides: bool
) -> torch.Tensor:
    """Entropy of the softmax over the columns from ``first`` on that are no ``sinks``, (batch, kv_heads, rows).

    ``weights`` are the softmax of all ``scores``, some of which may be -inf if the batch ``hides`` keys. Of many scores
    no second softmax is made: if the columns that count have the mass m, their probabilities are w / m, and log w =
    score - lse. That fails where m rounds away beside the sinks' mass.
    """
    few = scores.numel() <= FEW_SCORES or scores.device.type != "cpu"
    lse = None if few else _lse(scores, weights)
    counted = scores[..., first:]
    if sinks is not None:
        sinks, hides = sinks[..., : counted.shape[-1]], True
        counted = counted.masked_fill(sinks, -torch.inf)
    if lse is not None:
        weights = weights[..., first:] if sinks is None else weights[..., first:].masked_fill(sinks, 0.0)
        mass, info = weights.sum(-1), torch.finfo(scores.dtype)
        if not mass.amin() < info.tiny / info.eps:
            finite = counted.clamp_(min=info.min) if hides else counted  # of weight 0, and 0 * -inf is nan
            return (lse + mass.log() - torch.linalg.vecdot(weights, finite) / mass).clamp_(min=0.0)
    logs = counted.log_softmax(-1)
    if hides:
        logs.masked_fill_(counted == -torch.inf, 0.0)
    return logs.exp().mul_(logs).sum(-1).neg_()


def _pack(rows: torch.Tensor) -> torch.Tensor:
    """(batch, kv_heads, rows, n) to (kv_heads, batch * rows, n)."""
    return rows.transpose(0, 1).flatten(1, 2)


def _unpack(rows: torch.Tensor, batch: int) -> torch.Tensor:
    """(kv_heads, batch * rows, n) to (batch, kv_heads, rows, n)."""
    return rows.view(len(rows), batch, rows.shape[1] // batch, rows.shape[2]).transpose(0, 1)


def _as_heads(rows: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(batch, kv_heads, group * q_len, n) as (batch, heads, q_len, n)."""
    return rows.view(*q.shape[:3], rows.shape[-1])


def _own_rows(b: PrefixBatch) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The first own row in use, own keys and values from there to the last, and which a query does not see, if any.

    The latter is (batch, 1, q_len, rows). Away from the CPU the lengths are not read, which would wait for the device.
    """
    first, last, alike = 0, b.own_k.shape[2], False
    if b.own_lengths.device.type == "cpu":
        starts, lengths = zip(*b.rows_in_use(), strict=True)
        stops = [start + length for start, length in zip(starts, lengths, strict=True)]
        first, last = min(starts), max(stops)
        alike = b.q.shape[2] == 1 and first == max(starts) and last == min(stops)
    rows = slice(first, last)
    unseen = None if alike else b.hidden(torch.arange(first, last, device=b.own_k.device))[:, None]
    return first, b.own_k[:, :, rows], b.own_v[:, :, rows], unseen


def _mix(weights: torch.Tensor, values: torch.Tensor, unseen: torch.Tensor | None) -> torch.Tensor:
    """Weighted sum of own values; what lies outside an own length does not count, not even nan times zero."""
    if unseen is None:
        return weights @ values
    if values.device.type == "cpu":  # as a rule the sum is finite, and no values need copying
        mixed = weights @ values
        if isfinite(mixed.sum()):
            return mixed
    return weights @ values.masked_fill(unseen[:, :, -1, :, None], 0.0)
