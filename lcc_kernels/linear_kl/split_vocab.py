"""Rows whose vocabulary comes in tiles: because one row exceeds the byte budget, or because ranks hold a shard each.

Normalisers, losses and gradients need the whole row, so the tiles are visited once for each; what is kept between the
visits is a few numbers per row. Tiles of hidden states are recomputed at each visit unless one tile holds the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from .chunks import budget_bytes, spans, split_rows
from .divergence import Pair, RowSums
from .driver import Rows, outputs, project
from .groups import reduce_
from .options import KLOptions

# Raw logits of student and teacher, (2, rows, columns), one tile of the vocabulary after the other.
Tiles = Callable[[], Iterable[torch.Tensor]]

# The peak of a tile without logits, or of which all are -inf. It is finite, since peaks are subtracted.
LOWEST = -1e38

# Of the byte budget a tile's logits get this part; the rest is for the formulas' temporaries.
TILE_SHARE = 8


@dataclass(frozen=True)
class RowStatistics:
    """What a tile's gradient needs to know of the whole row.

    ``peak`` and ``log_sum`` (2, rows, 1): log-probability is z - peak - log_sum; both 0 for ``mse``. ``mean`` is the
    factor of the loss's mean over the vocabulary, ``centre`` (rows,) and ``finite`` as in ``divergence.Pair``.
    """

    peak: torch.Tensor | float
    log_sum: torch.Tensor | float
    mean: torch.Tensor | float
    loss: torch.Tensor
    centre: torch.Tensor | None
    finite: bool


def linear_kl_rows(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> Rows:
    """``driver.linear_kl_rows`` in tiles; ``weight`` (columns, H) and ``bias`` (columns,) are this rank's shard."""
    loss, gradient = outputs(student, with_grad)
    budget = budget_bytes(options.chunk_bytes, student.device) // TILE_SHARE
    dtype = options.of_logits(weight.dtype)
    chunk = split_rows(len(student), len(weight), dtype.itemsize, budget)
    columns = spans(len(weight), chunk.columns) or [slice(0, 0)]
    for span in spans(len(student), chunk.rows):
        tiles = _linear_tiles(student[span], teacher[span], weight, bias, columns, dtype)
        statistics = _statistics(tiles, len(weight), options, student.is_cpu)
        loss[span] = statistics.loss
        if with_grad:
            total = student.new_zeros(student[span].shape, dtype=loss.dtype)
            for tile, part in zip(tiles(), columns, strict=True):
                logit_gradients = _gradient(tile, statistics, options).to(weight.dtype)
                total += torch.mm(logit_gradients, weight[part])
            gradient[span] = reduce_(total, options.group)
    return loss, gradient


def kl_rows(student: torch.Tensor, teacher: torch.Tensor, options: KLOptions, with_grad: bool) -> Rows:
    """``driver.kl_rows`` of this rank's columns."""
    loss, gradient = outputs(student, with_grad)
    budget = budget_bytes(options.chunk_bytes, student.device) // TILE_SHARE
    chunk = split_rows(len(student), student.shape[1], student.element_size(), budget)
    for span in spans(len(student), chunk.rows):
        tile = torch.stack((student[span], teacher[span]))
        statistics = _statistics(_constant(tile), student.shape[1], options, student.is_cpu)
        loss[span] = statistics.loss
        if with_grad:
            gradient[span] = _gradient(tile, statistics, options)
    return loss, gradient


def _linear_tiles(
    student: torch.Tensor,
    teacher: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    columns: list[slice],
    dtype: torch.dtype,
) -> Tiles:
    hidden = torch.cat((student, teacher))

    def compute(part: slice) -> torch.Tensor:
        logits = hidden.new_empty(len(hidden), part.stop - part.start, dtype=dtype)
        project(hidden, weight[part], None if bias is None else bias[part], logits)
        return logits.view(2, len(student), logits.shape[1])

    if len(columns) == 1:
        return _constant(compute(columns[0]))
    return lambda: map(compute, columns)


def _constant(tile: torch.Tensor) -> Tiles:
    return lambda: [tile]


def _statistics(tiles: Tiles, columns: int, options: KLOptions, on_cpu: bool) -> RowStatistics:
    """Of all tiles and ranks. The losses of a CPU are read; a GPU would have to be waited for."""
    peak, log_sum = (0.0, 0.0) if options.loss == "mse" else _normalizers(tiles, options)
    loss, centre = _row_sums(tiles, peak, log_sum, options, finite=on_cpu)
    finite = on_cpu and bool(loss.isfinite().all())
    if on_cpu and not finite:
        loss, centre = _row_sums(tiles, peak, log_sum, options, finite=False)
    mean = reduce_(loss.new_full((), columns), options.group).reciprocal() if options.loss == "mse" else 1.0
    return RowStatistics(peak, log_sum, mean, loss.mul(mean).clamp_min_(0.0), centre, finite)


def _row_sums(
    tiles: Tiles, peak: torch.Tensor | float, log_sum: torch.Tensor | float, options: KLOptions, finite: bool
) -> RowSums:
    """``Pair.row_sums`` over all tiles and ranks."""
    sums = [_normalized(tile, peak, log_sum, options, finite).row_sums() for tile in tiles()]
    losses, centres = [loss for loss, _ in sums], [centre for _, centre in sums if centre is not None]
    loss = reduce_(torch.stack(losses).sum(0), options.group)
    return loss, reduce_(torch.stack(centres).sum(0), options.group) if centres else None


def _normalizers(tiles: Tiles, options: KLOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """``peak`` and ``log_sum`` over all tiles and ranks."""
    peaks, totals = [], []
    for tile in tiles():
        z = options.transform(tile)
        peaks.append(z.new_full((*z.shape[:-1], 1), LOWEST))
        if z.shape[-1]:
            peaks[-1] = peaks[-1].maximum(z.amax(-1, keepdim=True))
        totals.append((z - peaks[-1]).exp_().sum(-1, keepdim=True))
    peak, total = torch.stack(peaks), torch.stack(totals)
    highest = reduce_(peak.amax(0), options.group, maximum=True)
    total = reduce_((total * (peak - highest).exp_()).sum(0), options.group)
    return highest, total.log()


def _normalized(
    logits: torch.Tensor, peak: torch.Tensor | float, log_sum: torch.Tensor | float, options: KLOptions, finite: bool
) -> Pair:
    student, teacher = (options.transform(logits) - peak).sub_(log_sum)
    return Pair(student, teacher, options, finite)


def _gradient(logits: torch.Tensor, statistics: RowStatistics, options: KLOptions) -> torch.Tensor:
    """Gradient (rows, columns) of the losses in the raw student logits of a tile (2, rows, columns)."""
    pair = _normalized(logits, statistics.peak, statistics.log_sum, options, statistics.finite)
    return pair.gradient(statistics.centre).mul_(options.slope(logits[0]) * statistics.mean)
