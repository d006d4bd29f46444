"""Bottleneck attention in single passes over the visible tiles (FlashAttention-2's algorithm on ``schedule``'s tiles).

Scores live in base 2 and float32, sums in a fixed order: two runs give the same bits. Token counts are plain arguments.
Nothing of a context, finite or not, is loaded for a segment's rows. Segments of one document share tiles: a NaN in the
V of one may reach the rows of its neighbours, as it would in any tiled attention.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of a kernel are pointers and scalars of Triton's language, which has no annotations for them.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch import interpreting
from ..tiles import Tile, architecture
from .schedule import Schedule, schedule
from .tiles import Tiles, tiles

LOG2E = tl.constexpr(1.4426950408889634)
WIDEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}  # head_dim, by dtype


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out like q and lse (batch, heads, total) float32. Arguments as in ``reference.forward``."""
    q, k, v = map(_row_major, (q, k, v))
    batch, heads, total, _ = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    plan, sizes = _plan(q, spans)
    strides = [stride for x in (q, k, v) for stride in x.stride()[:3]]
    with torch.cuda.device_of(q):
        _forward[(batch * heads * len(plan.query),)](
            q, k, v, out, lse, plan.query, plan.row_start, scale, batch * heads, heads, heads // k.shape[1], total,
            *strides, **_constants(q, sizes.forward),
        )  # fmt: skip
    return out, lse


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
    """Return the gradients of q, k and v. Shapes as in ``forward``."""
    grad, q, k, v = map(_row_major, (grad, q, k, v))
    (batch, heads, total, _), kv_heads = q.shape, k.shape[1]
    grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    if q.numel() == 0:
        return grads[0], grads[1], grads[2]
    plan, sizes = _plan(q, spans)
    delta = torch.empty_like(lse)
    width = triton.next_power_of_2(q.shape[-1])
    partial = lse.new_empty(2, plan.slots, batch * kv_heads, sizes.grad_kv.keys, width)
    strides = [stride for x in (grad, q, k, v) for stride in x.stride()[:3]]
    with torch.cuda.device_of(q):
        _grad_q[(batch * heads * len(plan.grad_q),)](
            grad, q, k, v, out, lse, delta, grads[0], plan.grad_q, plan.row_start,
            scale, batch * heads, heads, heads // kv_heads, total, *strides, **_constants(q, sizes.grad_q),
        )  # fmt: skip
        _grad_kv[(batch * kv_heads * len(plan.grad_kv),)](
            grad, q, k, v, lse, delta, *grads[1:], *partial, plan.grad_kv, plan.row_start,
            scale, batch * kv_heads, kv_heads, heads // kv_heads, total, *strides, **_constants(q, sizes.grad_kv),
        )  # fmt: skip
        if plan.slots:
            _reduce[(batch * kv_heads * len(plan.reduce),)](
                *partial, *grads[1:], plan.reduce, batch * kv_heads, total, q.shape[-1], width, sizes.grad_kv.keys
            )
    return grads[0], grads[1], grads[2]


def refuses(*arguments: object) -> str | None:
    """Why the kernels cannot take these arguments of ``forward`` or ``backward``, or None."""
    q = arguments[0]
    assert isinstance(q, torch.Tensor)
    if q.dtype not in WIDEST:
        return f"{q.dtype} has no tensor-core path: use float16, bfloat16 or float32, or backend='torch'"
    if not 16 <= q.shape[-1] <= WIDEST[q.dtype]:
        return f"head_dim {q.shape[-1]} is outside 16 ... {WIDEST[q.dtype]} in {q.dtype}: use backend='torch'"
    if not arguments[-1] > 0:  # type: ignore[operator]  # the highest score is found before it is scaled
        return f"scale must be above 0; got {arguments[-1]}: use backend='torch'"
    if interpreting() and q.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 in it"
    return None


def _row_major(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _plan(q: torch.Tensor, spans: torch.Tensor) -> tuple[Schedule, Tiles]:
    sizes = tiles(architecture(q.device), q.shape[-1], q.dtype)
    return schedule(spans, sizes, q.device), sizes


def _constants(q: torch.Tensor, tile: Tile) -> dict[str, int | str]:
    return {**constants(q.shape[-1], q.dtype, tile), "num_warps": tile.warps, "num_stages": tile.stages}


def constants(head_dim: int, dtype: torch.dtype, tile: Tile) -> dict[str, int | str]:
    """What a kernel is compiled for: the padded head, the tile, and how float32 products are split."""
    return {
        "HEAD_DIM": head_dim,
        "WIDTH": triton.next_power_of_2(head_dim),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }


@triton.jit
def _program(pairs, heads):
    """Batch, head and tile of this program: all ``pairs`` of the first two start a tile before any starts the next."""
    pair = tl.program_id(0) % pairs
    return (pair // heads).to(tl.int64), (pair % heads).to(tl.int64), tl.program_id(0) // pairs


@triton.jit
def _load_rows(pointer, first, row_stride, bound, TILE: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows first ... first + TILE of a (rows, HEAD_DIM) matrix as (TILE, WIDTH), zero from ``bound`` (or None) on."""
    rows = tl.arange(0, TILE)
    columns = tl.arange(0, WIDTH)
    places = pointer + first.to(tl.int64) * row_stride + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    if bound is not None:
        inside = (first + rows < bound)[:, None] & (columns < HEAD_DIM)[None, :]
        return tl.load(places, mask=inside, other=0.0)
    if HEAD_DIM != WIDTH:
        return tl.load(places, mask=(columns < HEAD_DIM)[None, :], other=0.0)
    return tl.load(places)


@triton.jit
def _store_rows(
    pointer, value, first, row_stride, bound, TILE: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """Store (TILE, WIDTH) to rows first ... of a (rows, HEAD_DIM) matrix, up to ``bound``."""
    rows = tl.arange(0, TILE)
    columns = tl.arange(0, WIDTH)
    inside = (first + rows < bound)[:, None] & (columns < HEAD_DIM)[None, :]
    origin = pointer + first.to(tl.int64) * row_stride
    value = value.to(pointer.dtype.element_ty)
    tl.store(origin + rows[:, None] * row_stride + columns[None, :], value, mask=inside)


@triton.jit
def _whole_step(step, own_lo, own_hi, shared_lo, KEYS: tl.constexpr):
    """The first key of a step over the keys that all rows see: those of the own span, then the shared ones."""
    own_steps = (own_hi - own_lo) // KEYS
    return tl.where(step < own_steps, own_lo + step * KEYS, shared_lo + (step - own_steps) * KEYS)


@triton.jit
def _masked_step(step, own_hi, stop, tail, shared_hi, rows, own, KEYS: tl.constexpr):
    """First key, bound and visibility (rows, KEYS) of a step over the diagonal, then the shared interval's tail."""
    steps = tl.cdiv(stop - own_hi, KEYS)
    diagonal = step < steps
    key = tl.where(diagonal, own_hi + step * KEYS, tail)
    bound = tl.where(diagonal, stop, shared_hi)
    first = tl.where(diagonal, own, tail)
    last = tl.where(diagonal, rows, shared_hi - 1)
    columns = key + tl.arange(0, KEYS)
    return key, bound, (columns[None, :] >= first[:, None]) & (columns[None, :] <= last[:, None])


@triton.jit
def _fold(query, keys, values, seen, peak, mass, mean, factor, PRECISION: tl.constexpr):
    """Fold keys into the running softmax; ``seen`` (rows, keys) or None for all. ``factor`` must be above 0."""
    scores = tl.dot(query, keys.T, input_precision=PRECISION)
    if seen is not None:
        scores = tl.where(seen, scores, -float("inf"))
    higher = tl.maximum(peak, tl.max(scores, 1) * factor)
    base = higher
    if seen is not None:  # a row that has seen nothing yet must not subtract infinities
        base = tl.where(higher == -float("inf"), 0.0, higher)
    weights = tl.exp2(scores * factor - base[:, None])
    fade = tl.exp2(peak - base)
    mean = tl.dot(weights.to(values.dtype), values, mean * fade[:, None], input_precision=PRECISION)
    return higher, mass * fade + tl.sum(weights, 1), mean


@triton.jit(do_not_specialize=["total"])
def _forward(
    q, k, v, out, lse, table, row_start, scale, pairs, heads, group, total,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head: out (batch, heads, total, HEAD_DIM) and lse (batch, heads, total)."""
    batch, head, tile = _program(pairs, heads)
    table += tile * 6
    start, stop, own_lo = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    own_hi, shared_lo, shared_hi = tl.load(table + 3), tl.load(table + 4), tl.load(table + 5)
    k += batch * k_batch + head // group * k_head
    v += batch * v_batch + head // group * v_head
    flat = (batch * heads + head) * total
    query = _load_rows(q + batch * q_batch + head * q_head, start, q_row, stop, ROWS, HEAD_DIM, WIDTH)
    rows = start + tl.arange(0, ROWS)
    own = tl.load(row_start + rows, mask=rows < stop, other=total)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, WIDTH], tl.float32)
    factor = scale * LOG2E

    shared_steps = (shared_hi - shared_lo) // KEYS
    for step in range((own_hi - own_lo) // KEYS + shared_steps):
        key = _whole_step(step, own_lo, own_hi, shared_lo, KEYS)
        keys = _load_rows(k, key, k_row, None, KEYS, HEAD_DIM, WIDTH)
        values = _load_rows(v, key, v_row, None, KEYS, HEAD_DIM, WIDTH)
        peak, mass, mean = _fold(query, keys, values, None, peak, mass, mean, factor, PRECISION)

    tail = shared_lo + shared_steps * KEYS
    for step in range(tl.cdiv(stop - own_hi, KEYS) + tl.cdiv(shared_hi - tail, KEYS)):
        key, bound, seen = _masked_step(step, own_hi, stop, tail, shared_hi, rows, own, KEYS)
        keys = _load_rows(k, key, k_row, bound, KEYS, HEAD_DIM, WIDTH)
        values = _load_rows(v, key, v_row, bound, KEYS, HEAD_DIM, WIDTH)
        peak, mass, mean = _fold(query, keys, values, seen, peak, mass, mean, factor, PRECISION)

    _store_rows(out + flat * HEAD_DIM, mean / mass[:, None], start, HEAD_DIM, stop, ROWS, HEAD_DIM, WIDTH)
    tl.store(lse + flat + rows, peak / LOG2E + tl.log(mass), mask=rows < stop)


@triton.jit
def _gain_q(query, above, keys, values, seen, log_mass, delta, gained, factor, PRECISION: tl.constexpr):
    """Add keys' share of the gradient of rows; ``seen`` (rows, keys) or None for all."""
    scores = tl.dot(query, keys.T, input_precision=PRECISION) * factor
    weights = tl.exp2(scores - log_mass[:, None])
    slopes = weights * (tl.dot(above, values.T, input_precision=PRECISION) - delta[:, None])
    if seen is not None:
        slopes = tl.where(seen, slopes, 0.0)
    return tl.dot(slopes.to(keys.dtype), keys, gained, input_precision=PRECISION)


@triton.jit(do_not_specialize=["total"])
def _grad_q(
    grad, q, k, v, out, lse, delta, grad_q, table, row_start, scale, pairs, heads, group, total,
    g_batch, g_head, g_row, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one head: grad_q, and delta = grad . out, (batch, heads, total), for ``_grad_kv``."""
    batch, head, tile = _program(pairs, heads)
    table += tile * 6
    start, stop, own_lo = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    own_hi, shared_lo, shared_hi = tl.load(table + 3), tl.load(table + 4), tl.load(table + 5)
    k += batch * k_batch + head // group * k_head
    v += batch * v_batch + head // group * v_head
    flat = (batch * heads + head) * total
    query = _load_rows(q + batch * q_batch + head * q_head, start, q_row, stop, ROWS, HEAD_DIM, WIDTH)
    above = _load_rows(grad + batch * g_batch + head * g_head, start, g_row, stop, ROWS, HEAD_DIM, WIDTH)
    result = _load_rows(out + flat * HEAD_DIM, start, HEAD_DIM, stop, ROWS, HEAD_DIM, WIDTH)
    rows = start + tl.arange(0, ROWS)
    own = tl.load(row_start + rows, mask=rows < stop, other=total)
    log_mass = tl.load(lse + flat + rows, mask=rows < stop, other=float("inf")) * LOG2E
    dot = tl.sum(above.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(delta + flat + rows, dot, mask=rows < stop)
    gained = tl.zeros([ROWS, WIDTH], tl.float32)
    factor = scale * LOG2E

    shared_steps = (shared_hi - shared_lo) // KEYS
    for step in range((own_hi - own_lo) // KEYS + shared_steps):
        key = _whole_step(step, own_lo, own_hi, shared_lo, KEYS)
        keys = _load_rows(k, key, k_row, None, KEYS, HEAD_DIM, WIDTH)
        values = _load_rows(v, key, v_row, None, KEYS, HEAD_DIM, WIDTH)
        gained = _gain_q(query, above, keys, values, None, log_mass, dot, gained, factor, PRECISION)

    tail = shared_lo + shared_steps * KEYS
    for step in range(tl.cdiv(stop - own_hi, KEYS) + tl.cdiv(shared_hi - tail, KEYS)):
        key, bound, seen = _masked_step(step, own_hi, stop, tail, shared_hi, rows, own, KEYS)
        keys = _load_rows(k, key, k_row, bound, KEYS, HEAD_DIM, WIDTH)
        values = _load_rows(v, key, v_row, bound, KEYS, HEAD_DIM, WIDTH)
        gained = _gain_q(query, above, keys, values, seen, log_mass, dot, gained, factor, PRECISION)

    _store_rows(grad_q + flat * HEAD_DIM, gained * scale, start, HEAD_DIM, stop, ROWS, HEAD_DIM, WIDTH)


@triton.jit
def _gain_kv(query, above, keys, values, seen, log_mass, delta, gained_k, gained_v, factor, PRECISION: tl.constexpr):
    """Add rows' share of the gradients of keys and values; ``seen`` (keys, rows) or None for all."""
    scores = tl.dot(keys, query.T, input_precision=PRECISION) * factor
    weights = tl.exp2(scores - log_mass[None, :])
    slopes = weights * (tl.dot(values, above.T, input_precision=PRECISION) - delta[None, :])
    if seen is not None:
        weights = tl.where(seen, weights, 0.0)
        slopes = tl.where(seen, slopes, 0.0)
    gained_v = tl.dot(weights.to(above.dtype), above, gained_v, input_precision=PRECISION)
    gained_k = tl.dot(slopes.to(query.dtype), query, gained_k, input_precision=PRECISION)
    return gained_k, gained_v


@triton.jit(do_not_specialize=["total"])
def _grad_kv(
    grad, q, k, v, lse, delta, grad_k, grad_v, partial_k, partial_v, table, row_start, scale,
    pairs, kv_heads, group, total,
    g_batch, g_head, g_row, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one key/value head, summed over some of the rows that see it and the heads of its group."""
    batch, kv_head, tile = _program(pairs, kv_heads)
    table += tile * 6
    start, stop, first = tl.load(table), tl.load(table + 1), tl.load(table + 2)
    masked, last = tl.load(table + 3), tl.load(table + 4)
    keys = _load_rows(k + batch * k_batch + kv_head * k_head, start, k_row, stop, KEYS, HEAD_DIM, WIDTH)
    values = _load_rows(v + batch * v_batch + kv_head * v_head, start, v_row, stop, KEYS, HEAD_DIM, WIDTH)
    columns = start + tl.arange(0, KEYS)
    gained_k = tl.zeros([KEYS, WIDTH], tl.float32)
    gained_v = tl.zeros([KEYS, WIDTH], tl.float32)
    factor = scale * LOG2E
    flat_kv = batch * kv_heads + kv_head

    masked_steps = tl.cdiv(masked - first, ROWS)
    for step in range(group * masked_steps):
        member = step // masked_steps
        row = first + step % masked_steps * ROWS
        flat, head = (flat_kv * group + member) * total, kv_head * group + member
        query = _load_rows(q + batch * q_batch + head * q_head, row, q_row, masked, ROWS, HEAD_DIM, WIDTH)
        above = _load_rows(grad + batch * g_batch + head * g_head, row, g_row, masked, ROWS, HEAD_DIM, WIDTH)
        rows = row + tl.arange(0, ROWS)
        log_mass = tl.load(lse + flat + rows, mask=rows < masked, other=float("inf")) * LOG2E
        dot = tl.load(delta + flat + rows, mask=rows < masked, other=0.0)
        own = tl.load(row_start + rows, mask=rows < masked, other=total)
        seen = (columns[:, None] >= own[None, :]) & (columns[:, None] <= rows[None, :])
        gained_k, gained_v = _gain_kv(
            query, above, keys, values, seen, log_mass, dot, gained_k, gained_v, factor, PRECISION
        )

    whole_steps = tl.cdiv(last - masked, ROWS)
    for step in range(group * whole_steps):
        member = step // whole_steps
        row = masked + step % whole_steps * ROWS
        flat, head = (flat_kv * group + member) * total, kv_head * group + member
        query = _load_rows(q + batch * q_batch + head * q_head, row, q_row, last, ROWS, HEAD_DIM, WIDTH)
        above = _load_rows(grad + batch * g_batch + head * g_head, row, g_row, last, ROWS, HEAD_DIM, WIDTH)
        rows = row + tl.arange(0, ROWS)
        log_mass = tl.load(lse + flat + rows, mask=rows < last, other=float("inf")) * LOG2E
        dot = tl.load(delta + flat + rows, mask=rows < last, other=0.0)
        gained_k, gained_v = _gain_kv(
            query, above, keys, values, None, log_mass, dot, gained_k, gained_v, factor, PRECISION
        )

    slot = tl.load(table + 5)
    if slot < 0:
        _store_rows(grad_k + flat_kv * total * HEAD_DIM, gained_k * scale, start, HEAD_DIM, stop, KEYS, HEAD_DIM, WIDTH)
        _store_rows(grad_v + flat_kv * total * HEAD_DIM, gained_v, start, HEAD_DIM, stop, KEYS, HEAD_DIM, WIDTH)
    else:
        where = (slot.to(tl.int64) * pairs + flat_kv) * KEYS * WIDTH
        inside = tl.arange(0, KEYS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        tl.store(partial_k + where + inside, gained_k * scale)
        tl.store(partial_v + where + inside, gained_v)


@triton.jit(do_not_specialize=["total"])
def _reduce(
    partial_k, partial_v, grad_k, grad_v, table, pairs, total,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of shared keys of one key/value head: its partial sums, added in a fixed order."""
    flat, _, tile = _program(pairs, 1)
    table += tile * 4
    start, stop, slot_lo, slot_hi = tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3)
    sum_k = tl.zeros([KEYS, WIDTH], tl.float32)
    sum_v = tl.zeros([KEYS, WIDTH], tl.float32)
    inside = tl.arange(0, KEYS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    slot_size = tl.cast(pairs, tl.int64) * KEYS * WIDTH
    for slot in range(slot_lo, slot_hi):
        where = slot * slot_size + flat * KEYS * WIDTH + inside
        sum_k += tl.load(partial_k + where)
        sum_v += tl.load(partial_v + where)
    _store_rows(grad_k + flat * total * HEAD_DIM, sum_k, start, HEAD_DIM, stop, KEYS, HEAD_DIM, WIDTH)
    _store_rows(grad_v + flat * total * HEAD_DIM, sum_v, start, HEAD_DIM, stop, KEYS, HEAD_DIM, WIDTH)
