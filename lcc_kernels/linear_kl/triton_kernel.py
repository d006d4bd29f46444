"""The row kernel in Triton: a program a row, logits read twice (``jsd`` three times, ``mse`` once), gradient in place.

The first sweep keeps running maxima and rescales what it has summed (online softmax, arXiv 1805.02867). The second
runs backwards, so that it begins with what the first has just left in L2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .options import KLOptions, accumulation_dtype

KINDS = {"forward": 0, "reverse": 1, "jsd": 2}

# Below every logit, and still finite: differences are taken of logits beyond the vocabulary and of peaks.
LOWEST = tl.constexpr(-1e38)


@dataclass(frozen=True)
class Tile:
    """Columns that a program takes at a time, and its warps."""

    block: int
    num_warps: int


def tile(vocab: int) -> Tile:
    """16 columns a thread: two 16-byte accesses of half precision, few enough registers for 8 warps without spills."""
    block = min(max(triton.next_power_of_2(vocab), 128), 4096)
    return Tile(block, max(block // 512, 1))


@triton.jit
def _tanh(x):
    """tanh to float32 rounding: its series near 0, where 1 - exp(-2 |x|) would cancel."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    decay = tl.exp(-2 * tl.abs(x))
    exact = (1 - decay) / (1 + decay)
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x < 0, -exact, exact))


@triton.jit
def _load(row, columns, vocab, inner, outer, CAPPED: tl.constexpr, MASKED: tl.constexpr):
    """Transformed logits in float32, ``LOWEST`` beyond the vocabulary, and their slopes."""
    x = tl.load(row + columns, mask=columns < vocab, other=0.0) if MASKED else tl.load(row + columns)
    x = x.to(tl.float32) * inner
    slope = tl.full(x.shape, 1.0, tl.float32) * (inner * outer)
    if CAPPED:
        x = _tanh(x)
        slope *= 1 - x * x
    x *= outer
    if MASKED:
        x = tl.where(columns < vocab, x, LOWEST)
    return x, slope


@triton.jit
def _store(row, columns, vocab, gradient, MASKED: tl.constexpr):
    gradient = gradient.to(row.dtype.element_ty)
    if MASKED:
        tl.store(row + columns, gradient, mask=columns < vocab)
    else:
        tl.store(row + columns, gradient)


@triton.jit
def _accumulate(state, lead, trail):
    """Fold a block into (peaks, sums, cross), whose cross / lead_sum is the mean of lead - trail under lead."""
    lead_peak, trail_peak, lead_sum, trail_sum, cross = state
    new_lead_peak = tl.maximum(lead_peak, tl.max(lead))
    new_trail_peak = tl.maximum(trail_peak, tl.max(trail))
    moved = (new_lead_peak - new_trail_peak) - (lead_peak - trail_peak)
    decay = tl.exp(lead_peak - new_lead_peak)
    lead -= new_lead_peak
    trail -= new_trail_peak
    likelihood = tl.exp(lead)
    cross = (cross - lead_sum * moved) * decay + tl.sum(likelihood * (lead - trail))
    lead_sum = lead_sum * decay + tl.sum(likelihood)
    trail_sum = trail_sum * tl.exp(trail_peak - new_trail_peak) + tl.sum(tl.exp(trail))
    return new_lead_peak, new_trail_peak, lead_sum, trail_sum, cross


@triton.jit
def _log_share(log_ratio, share):
    """log(own / mixture), given log(other / own) and the other's share of the mixture; no overflow at any ratio."""
    top = tl.maximum(log_ratio, 0.0)
    return -top - tl.log((1 - share) * tl.exp(-top) + share * tl.exp(log_ratio - top))


@triton.jit
def _mixture_terms(log_p, log_q, beta):
    """A block's KL(student || mixture) and KL(teacher || mixture)."""
    from_student = tl.sum(tl.exp(log_p) * _log_share(log_q - log_p, beta))
    return from_student, tl.sum(tl.exp(log_q) * _log_share(log_p - log_q, 1 - beta))


@triton.jit
def _gradient(log_p, log_q, centre, beta, KIND: tl.constexpr):
    """Gradient of the loss in the student's transformed logits."""
    p = tl.exp(log_p)
    if KIND == 0:
        gradient = p - tl.exp(log_q)
    elif KIND == 1:
        gradient = p * (log_p - log_q - centre)
    else:
        gradient = (1 - beta) * p * (_log_share(log_q - log_p, beta) - centre)
    return gradient


@triton.jit
def divergence_kernel(
    student,
    teacher,
    loss,
    row_weight,
    student_stride,
    teacher_stride,
    vocab,
    inner,
    outer,
    beta,
    KIND: tl.constexpr,
    CAPPED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Divergence of row ``program_id(0)``, its gradient over the student's logits; a row of weight 0 is left alone.

    ``student`` and ``teacher`` (rows, vocab) with unit stride along a row, ``loss`` (rows,), ``row_weight`` (rows,).
    Whole blocks go without a mask, which would keep their accesses from being 16 bytes wide.
    """
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(row_weight + row) if WEIGHTED else 1.0
    if weight == 0:
        return
    student += row * student_stride
    teacher += row * teacher_stride
    whole = vocab // BLOCK
    rest = whole * BLOCK + tl.arange(0, BLOCK)

    lowest = tl.full((), LOWEST, tl.float32)
    state = lowest, lowest, 0.0, 0.0, 0.0
    for index in range(whole):
        columns = index * BLOCK + tl.arange(0, BLOCK)
        s, _ = _load(student, columns, vocab, inner, outer, CAPPED, False)
        t, _ = _load(teacher, columns, vocab, inner, outer, CAPPED, False)
        state = _accumulate(state, s, t) if KIND == 1 else _accumulate(state, t, s)
    s, _ = _load(student, rest, vocab, inner, outer, CAPPED, True)
    t, _ = _load(teacher, rest, vocab, inner, outer, CAPPED, True)
    if KIND == 1:
        s_peak, t_peak, s_sum, t_sum, cross = _accumulate(state, s, t)
        divergence = cross / s_sum - tl.log(s_sum) + tl.log(t_sum)
    else:
        t_peak, s_peak, t_sum, s_sum, cross = _accumulate(state, t, s)
        divergence = cross / t_sum - tl.log(t_sum) + tl.log(s_sum)

    centre = divergence
    if KIND == 2:
        log_p, log_q = s - s_peak - tl.log(s_sum), t - t_peak - tl.log(t_sum)
        from_student, from_teacher = _mixture_terms(log_p, log_q, beta)
        for index in range(whole):
            columns = index * BLOCK + tl.arange(0, BLOCK)
            s, _ = _load(student, columns, vocab, inner, outer, CAPPED, False)
            t, _ = _load(teacher, columns, vocab, inner, outer, CAPPED, False)
            log_p, log_q = s - s_peak - tl.log(s_sum), t - t_peak - tl.log(t_sum)
            of_student, of_teacher = _mixture_terms(log_p, log_q, beta)
            from_student += of_student
            from_teacher += of_teacher
        centre = from_student
        divergence = beta * from_teacher + (1 - beta) * from_student
    # Not tl.maximum, which takes 0 for a NaN on a GPU.
    tl.store(loss + row, tl.where(divergence < 0, 0.0, divergence))

    if WITH_GRAD:
        s, slope = _load(student, rest, vocab, inner, outer, CAPPED, True)
        t, _ = _load(teacher, rest, vocab, inner, outer, CAPPED, True)
        log_p, log_q = s - s_peak - tl.log(s_sum), t - t_peak - tl.log(t_sum)
        _store(student, rest, vocab, _gradient(log_p, log_q, centre, beta, KIND) * slope, True)
        for index in range(whole):
            columns = (whole - 1 - index) * BLOCK + tl.arange(0, BLOCK)
            s, slope = _load(student, columns, vocab, inner, outer, CAPPED, False)
            t, _ = _load(teacher, columns, vocab, inner, outer, CAPPED, False)
            log_p, log_q = s - s_peak - tl.log(s_sum), t - t_peak - tl.log(t_sum)
            _store(student, columns, vocab, _gradient(log_p, log_q, centre, beta, KIND) * slope, False)


@triton.jit
def mse_kernel(
    student,
    teacher,
    loss,
    row_weight,
    student_stride,
    teacher_stride,
    vocab,
    inner,
    outer,
    CAPPED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mean squared difference of row ``program_id(0)``; arguments as in ``divergence_kernel``."""
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(row_weight + row) if WEIGHTED else 1.0
    if weight == 0:
        return
    student += row * student_stride
    teacher += row * teacher_stride
    whole = vocab // BLOCK
    rest = whole * BLOCK + tl.arange(0, BLOCK)
    s, slope = _load(student, rest, vocab, inner, outer, CAPPED, True)
    t, _ = _load(teacher, rest, vocab, inner, outer, CAPPED, True)
    difference = s - t
    total = tl.sum(difference * difference)
    if WITH_GRAD:
        _store(student, rest, vocab, difference * slope * (2.0 / vocab), True)
    for index in range(whole):
        columns = index * BLOCK + tl.arange(0, BLOCK)
        s, slope = _load(student, columns, vocab, inner, outer, CAPPED, False)
        t, _ = _load(teacher, columns, vocab, inner, outer, CAPPED, False)
        difference = s - t
        total += tl.sum(difference * difference)
        if WITH_GRAD:
            _store(student, columns, vocab, difference * slope * (2.0 / vocab), False)
    tl.store(loss + row, total / vocab)


def divergence_(
    student: torch.Tensor,
    teacher: torch.Tensor,
    row_weight: torch.Tensor | None,
    options: KLOptions,
    with_grad: bool,
) -> torch.Tensor:
    """Losses (rows,) of raw logits (rows, V); ``with_grad`` replaces ``student`` by its gradient, in place."""
    if teacher.stride(1) != 1:
        teacher = teacher.contiguous()
    if student.stride(1) != 1:
        student = student.contiguous()
    rows, vocab = student.shape
    loss = student.new_empty(rows, dtype=accumulation_dtype(student.dtype))
    if rows == 0:
        return loss
    size = tile(vocab)
    weights = loss if row_weight is None else row_weight.contiguous()
    arguments = (
        student,
        teacher,
        loss,
        weights,
        student.stride(0),
        teacher.stride(0),
        vocab,
        options.inner,
        options.outer,
    )
    settings = {
        "CAPPED": options.softcap is not None,
        "WEIGHTED": row_weight is not None,
        "WITH_GRAD": with_grad,
        "BLOCK": size.block,
        "num_warps": size.num_warps,
    }
    with torch.cuda.device_of(student):
        if options.loss == "mse":
            mse_kernel[(rows,)](*arguments, **settings)
        else:
            divergence_kernel[(rows,)](*arguments, options.beta, KIND=KINDS[options.kind], **settings)
    return loss
