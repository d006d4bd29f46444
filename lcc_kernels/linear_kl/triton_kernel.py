"""The row kernel in Triton: a program a row, logits read twice (``jsd`` three times, ``mse`` once), gradient in place.

A lane keeps running maxima of its own columns and rescales what it has summed (online softmax, arXiv 1805.02867). Lanes
meet once a sweep, after its loop. Exponentials have base 2: the factor on the logits then costs one fused multiply-add.
The last sweep runs backwards, so that it begins with what the first has just left in L2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .options import KLOptions, accumulation_dtype

ACCESS_BYTES = 16

# Where a maximum starts. It is finite, since differences are taken of maxima.
LOWEST = tl.constexpr(-1e38)
LOG2_E = tl.constexpr(math.log2(math.e))
LN_2 = tl.constexpr(math.log(2))


@dataclass(frozen=True)
class Tile:
    """Columns that a program takes at a time, ``width`` neighbours a lane, and its warps."""

    lanes: int
    width: int
    num_warps: int


def tile(vocab: int, itemsize: int) -> Tile:
    """A 16-byte access a thread; all threads of an SM to one row, since more rows at a time would not stay in L2."""
    width = ACCESS_BYTES // itemsize
    lanes = min(max(triton.next_power_of_2(triton.cdiv(vocab, width)), 32), 1024)
    return Tile(lanes, width, lanes // 32)


@triton.jit
def _columns(index, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Columns (LANES, WIDTH) of tile ``index``: each lane's are neighbours."""
    lanes = index * LANES + tl.arange(0, LANES)
    return lanes[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _tanh(x):
    """tanh to 5e-7 of itself: its series near 0, where 1 - 2 / (1 + exp(2 x)) would cancel."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315))))
    growth = tl.exp2(x * (2 * LOG2_E))
    return tl.where(tl.abs(x) < 0.2, series, 1 - 2 / (1 + growth))


@triton.jit
def _load(row, columns, vocab, inner, SHAPE: tl.constexpr, MASKED: tl.constexpr):
    """Logits in float32, of ``KLOptions.shape``, to be multiplied by ``scale``; -inf beyond the vocabulary."""
    x = tl.load(row + columns, mask=columns < vocab, other=0.0) if MASKED else tl.load(row + columns)
    x = x.to(tl.float32)
    if SHAPE == "capped":
        x = _tanh(x * inner)
    if SHAPE == "negated":
        x = -x
    return tl.where(columns < vocab, x, float("-inf")) if MASKED else x


@triton.jit
def _pair(student, teacher, columns, vocab, inner, SHAPE: tl.constexpr, MASKED: tl.constexpr):
    """``_load`` of both."""
    s = _load(student, columns, vocab, inner, SHAPE, MASKED)
    return s, _load(teacher, columns, vocab, inner, SHAPE, MASKED)


@triton.jit
def _store(row, columns, vocab, gradient, MASKED: tl.constexpr):
    gradient = gradient.to(row.dtype.element_ty)
    if MASKED:
        tl.store(row + columns, gradient, mask=columns < vocab)
    else:
        tl.store(row + columns, gradient)


@triton.jit
def _weighed(weight, value):
    """``weight * value``, 0 where the weight is 0: also of an infinite value, or of the difference of two."""
    return weight * tl.where(weight == 0, 0.0, value)


@triton.jit
def _accumulate(state, lead, trail, scale):
    """Fold a tile into each lane's (peaks, sums, cross); cross / lead_sum is the mean of lead - trail under lead."""
    lead_peak, trail_peak, lead_sum, trail_sum, cross = state
    new_lead_peak = tl.maximum(lead_peak, tl.max(lead, 1) * scale)
    new_trail_peak = tl.maximum(trail_peak, tl.max(trail, 1) * scale)
    state = _raised(state, new_lead_peak, new_trail_peak)
    lead_peak, trail_peak, lead_sum, trail_sum, cross = state
    lead = tl.fma(lead, scale, -lead_peak[:, None])
    trail = tl.fma(trail, scale, -trail_peak[:, None])
    likelihood = tl.exp2(lead)
    cross += tl.sum(_weighed(likelihood, lead - trail), 1)
    lead_sum += tl.sum(likelihood, 1)
    trail_sum += tl.sum(tl.exp2(trail), 1)
    return lead_peak, trail_peak, lead_sum, trail_sum, cross


@triton.jit
def _raised(state, new_lead_peak, new_trail_peak):
    """The state relative to higher peaks."""
    lead_peak, trail_peak, lead_sum, trail_sum, cross = state
    moved = (new_lead_peak - lead_peak) - (new_trail_peak - trail_peak)
    decay = tl.exp2(lead_peak - new_lead_peak)
    cross = _weighed(decay, cross - lead_sum * moved)
    return new_lead_peak, new_trail_peak, lead_sum * decay, trail_sum * tl.exp2(trail_peak - new_trail_peak), cross


@triton.jit
def _merged(state):
    """All lanes' states as one of the row."""
    lead_peak, trail_peak = tl.max(state[0], 0), tl.max(state[1], 0)
    _, _, lead_sum, trail_sum, cross = _raised(state, lead_peak, trail_peak)
    return lead_peak, trail_peak, tl.sum(lead_sum, 0), tl.sum(trail_sum, 0), tl.sum(cross, 0)


@triton.jit
def _log2_share(log2_ratio, share):
    """log2(own / mixture), given log2(other / own) and the other's share of the mixture; no overflow at any ratio."""
    top = tl.maximum(log2_ratio, 0.0)
    return -top - tl.log2((1 - share) * tl.exp2(-top) + share * tl.exp2(log2_ratio - top))


@triton.jit
def _mixture_terms(sums, s, t, norm, scale, beta):
    """Add each lane's parts of KL(student || mixture) and KL(teacher || mixture), in bits."""
    s_peak, t_peak, s_sum, t_sum = norm
    log_p = tl.fma(s, scale, -s_peak) - tl.log2(s_sum)
    log_q = tl.fma(t, scale, -t_peak) - tl.log2(t_sum)
    from_student = tl.sum(_weighed(tl.exp2(log_p), _log2_share(log_q - log_p, beta)), 1)
    from_teacher = tl.sum(_weighed(tl.exp2(log_q), _log2_share(log_p - log_q, 1 - beta)), 1)
    return sums[0] + from_student, sums[1] + from_teacher


@triton.jit
def _gradient(s, t, norm, scale, factor, centre, beta, KIND: tl.constexpr, SHAPE: tl.constexpr):
    """Gradient of the loss in the student's raw logits; ``centre`` is in bits."""
    s_peak, t_peak, s_sum, t_sum = norm
    log_p, log_q = tl.fma(s, scale, -s_peak), tl.fma(t, scale, -t_peak)
    if KIND == "forward":
        gradient = tl.exp2(log_p) * (factor / s_sum) - tl.exp2(log_q) * (factor / t_sum)
    elif KIND == "reverse":
        gradient = _weighed(tl.exp2(log_p) * (factor * LN_2 / s_sum), log_p - log_q - centre)
    else:
        log_p -= tl.log2(s_sum)
        log_q -= tl.log2(t_sum)
        p = tl.exp2(log_p) * ((1 - beta) * factor * LN_2)
        gradient = _weighed(p, _log2_share(log_q - log_p, beta) - centre)
    return gradient * (1 - s * s) if SHAPE == "capped" else gradient


@triton.jit
def _divergence(
    student, teacher, vocab, inner, scale, factor, beta, KIND: tl.constexpr, SHAPE: tl.constexpr,
    WITH_GRAD: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Divergence of a row; its gradient over the student's logits."""
    whole = vocab // (LANES * WIDTH)
    rest = _columns(whole, LANES, WIDTH)
    scale *= LOG2_E
    lowest, zero = tl.full((LANES,), LOWEST, tl.float32), tl.zeros((LANES,), tl.float32)
    state = lowest, lowest, zero, zero, zero
    for index in range(whole):
        s, t = _pair(student, teacher, _columns(index, LANES, WIDTH), vocab, inner, SHAPE, False)
        state = _accumulate(state, s, t, scale) if KIND == "reverse" else _accumulate(state, t, s, scale)
    s, t = _pair(student, teacher, rest, vocab, inner, SHAPE, True)
    if KIND == "reverse":
        s_peak, t_peak, s_sum, t_sum, cross = _merged(_accumulate(state, s, t, scale))
        centre = cross / s_sum
        divergence = centre - tl.log2(s_sum) + tl.log2(t_sum)
    else:
        t_peak, s_peak, t_sum, s_sum, cross = _merged(_accumulate(state, t, s, scale))
        centre = cross / t_sum
        divergence = centre - tl.log2(t_sum) + tl.log2(s_sum)
    norm = s_peak, t_peak, s_sum, t_sum

    if KIND == "jsd":
        sums = zero, zero
        for index in range(whole):
            s, t = _pair(student, teacher, _columns(index, LANES, WIDTH), vocab, inner, SHAPE, False)
            sums = _mixture_terms(sums, s, t, norm, scale, beta)
        s, t = _pair(student, teacher, rest, vocab, inner, SHAPE, True)
        sums = _mixture_terms(sums, s, t, norm, scale, beta)
        centre = tl.sum(sums[0], 0)
        divergence = beta * tl.sum(sums[1], 0) + (1 - beta) * centre

    if WITH_GRAD:
        s, t = _pair(student, teacher, rest, vocab, inner, SHAPE, True)
        _store(student, rest, vocab, _gradient(s, t, norm, scale, factor, centre, beta, KIND, SHAPE), True)
        for index in range(whole):
            columns = _columns(whole - 1 - index, LANES, WIDTH)
            s, t = _pair(student, teacher, columns, vocab, inner, SHAPE, False)
            _store(student, columns, vocab, _gradient(s, t, norm, scale, factor, centre, beta, KIND, SHAPE), False)
    # Not tl.maximum, which takes 0 for a NaN on a GPU.
    return tl.where(divergence < 0, 0.0, divergence * LN_2)


@triton.jit
def _difference(s, t, factor, scale, SHAPE: tl.constexpr):
    """Differences of transformed logits, none between equal infinities, and the gradient of half their squares."""
    difference = tl.where(s == t, 0.0, (s - t) * scale)
    gradient = difference * factor
    return difference, gradient * (1 - s * s) if SHAPE == "capped" else gradient


@triton.jit
def _mean_square(
    student, teacher, vocab, inner, scale, factor, SHAPE: tl.constexpr,
    WITH_GRAD: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean squared difference of a row; its gradient over the student's logits."""
    whole = vocab // (LANES * WIDTH)
    rest = _columns(whole, LANES, WIDTH)
    factor *= 2.0 / vocab
    total = tl.zeros((LANES,), tl.float32)
    for index in range(whole):
        columns = _columns(index, LANES, WIDTH)
        s, t = _pair(student, teacher, columns, vocab, inner, SHAPE, False)
        difference, gradient = _difference(s, t, factor, scale, SHAPE)
        total += tl.sum(difference * difference, 1)
        if WITH_GRAD:
            _store(student, columns, vocab, gradient, False)
    s, t = _pair(student, teacher, rest, vocab, inner, SHAPE, True)
    difference, gradient = _difference(s, t, factor, scale, SHAPE)
    total += tl.sum(difference * difference, 1)
    if WITH_GRAD:
        _store(student, rest, vocab, gradient, True)
    return tl.sum(total, 0) / vocab


@triton.jit
def row_kernel(
    student, teacher, loss, row_weight, student_stride, teacher_stride, vocab, inner, scale, factor, beta,
    KIND: tl.constexpr, SHAPE: tl.constexpr, WEIGHTED: tl.constexpr, WITH_GRAD: tl.constexpr,
    LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Loss of row ``program_id(0)``, its gradient over the student's logits; a row of weight 0 is left alone.

    ``student`` and ``teacher`` (rows, vocab) with unit stride along a row, ``loss`` (rows,), ``row_weight`` (rows,).
    Whole tiles go without a mask, which would keep their accesses from being 16 bytes wide.
    """
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(row_weight + row) if WEIGHTED else 1.0
    if weight == 0:
        return
    student += row * student_stride
    teacher += row * teacher_stride
    if KIND == "mse":
        of_row = _mean_square(student, teacher, vocab, inner, scale, factor, SHAPE, WITH_GRAD, LANES, WIDTH)
    else:
        of_row = _divergence(student, teacher, vocab, inner, scale, factor, beta, KIND, SHAPE, WITH_GRAD, LANES, WIDTH)
    tl.store(loss + row, of_row)


def divergence_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> torch.Tensor:
    """Losses (rows,) of raw logits (rows, V); ``with_grad`` replaces ``student`` by its gradient, in place."""
    student, teacher = (x if x.stride(1) == 1 else x.contiguous() for x in (student, teacher))
    rows, vocab = student.shape
    loss = student.new_empty(rows, dtype=accumulation_dtype(student.dtype))
    if rows == 0:
        return loss
    size = tile(vocab, student.element_size())
    with torch.cuda.device_of(student):
        row_kernel[(rows,)](
            student, teacher, loss, loss if row_weight is None else row_weight.contiguous(),
            student.stride(0), teacher.stride(0), vocab,
            options.inner, options.scale, options.factor, options.beta,
            KIND=options.kind, SHAPE=options.shape,
            WEIGHTED=row_weight is not None, WITH_GRAD=with_grad,
            LANES=size.lanes, WIDTH=size.width, num_warps=size.num_warps,
        )  # fmt: skip
    return loss
