"""Shared-prefix attention in one launch (FlashAttention-2's running softmax over the prefix, then the own keys).

A program holds a tile of rows of one key head, taken from (batch, group, q_len) in that order. Its keys come in runs:
each prefix of its sequences, then each sequence's own rows. A run is read in blocks, under a mask of the rows that see
it. So a prefix is read once a tile and not once a sequence: with 8 key heads of 128 in bfloat16, a prefix of 2,048 and
32 sequences in groups of 4, the tiles read 34 MB (4 tiles of 32 rows) where one attention a sequence reads 268 MB.

When tiles are too few for the GPU, several programs share one, each with a part of its blocks; a tile of few blocks
is shared by fewer. The last to finish, told by a counter, adds their partial sums in a fixed order: still one launch,
and two runs give the same bits.

A nan in a sequence's own rows, or in one prefix of several, may reach the other sequences of its tile, as in any tiled
attention.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of a kernel are pointers and scalars of Triton's language, which has no annotations for them.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_rows(pointer, rows, row_stride, inside, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows (n,) of a (..., HEAD_DIM) matrix as (n, WIDTH), zero where not ``inside`` (n,)."""
    columns = tl.arange(0, WIDTH)
    places = pointer + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(places, mask=inside[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _finite(peak):
    """``peak`` to subtract from scores, 0 for a row that has seen nothing, which must not subtract infinities."""
    return tl.where(peak == -float("inf"), 0.0, peak)


@triton.jit
def _nothing(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Peak, mass and mean of a softmax over no keys."""
    return tl.full([ROWS], -float("inf"), tl.float32), tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def _join(peak, other):
    """The higher of two peaks, and what sums under each of them fade to under it."""
    higher = tl.maximum(peak, other)
    return higher, tl.exp2(peak - _finite(higher)), tl.exp2(other - _finite(higher))


@triton.jit
def _fold(scores, values, peak, mass, mean, PRECISION: tl.constexpr):
    """Fold keys of these scores (rows, keys) into the running softmax."""
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - _finite(higher)[:, None])
    fade = tl.exp2(peak - _finite(higher))
    mean = tl.dot(weights.to(values.dtype), values, mean * fade[:, None], input_precision=PRECISION)
    return higher, mass * fade + tl.sum(weights, 1), mean


@triton.jit
def _times(mass, factor):
    """``mass * factor``, 0 where there is no mass and the factor may be infinite."""
    return tl.where(mass == 0.0, 0.0, mass * factor)


@triton.jit
def _join_entropy(top, bulk, drop, other_top, other_bulk, other_drop):
    """Two parts' states of the entropy (see ``_fold_entropy``) in one."""
    higher, fade, other_fade = _join(top, other_top)
    drop = fade * (drop + _times(bulk, top - _finite(higher)))
    other_drop = other_fade * (other_drop + _times(other_bulk, other_top - _finite(higher)))
    return higher, bulk * fade + other_bulk * other_fade, drop + other_drop


@triton.jit
def _fold_entropy(scores, top, bulk, drop):
    """Fold scores (rows, keys), -inf for keys that do not count, into the entropy's own running softmax.

    ``top`` is the highest score, ``bulk`` the sum of w = 2 ** (score - top), and ``drop`` that of w * (score - top).
    Sinks must not set its top, or what they leave over would vanish beside them.
    """
    block_top = tl.max(scores, 1)
    below = scores - _finite(block_top)[:, None]
    weights = tl.exp2(below)
    block_drop = tl.sum(_times(weights, below), 1)
    return _join_entropy(top, bulk, drop, block_top, tl.sum(weights, 1), block_drop)


@triton.jit
def _nats(bulk, drop):
    """Entropy from its state in powers of two; 0 for a row without a key, and never below."""
    some = tl.where(bulk == 0.0, 1.0, bulk)
    nats = (tl.log2(some) - drop / some) / LOG2E
    return tl.where(nats < 0.0, 0.0, nats)


@triton.jit
def _span(lengths, starts, sequence, live, whole):
    """First row of sequences' keys and the row after the last, as given: they may lie outside of what there is.

    Without lengths they are ``whole``, without starts 0.
    """
    first = sequence * 0
    length = first + whole
    if lengths is not None:
        length = tl.load(lengths + sequence, mask=live, other=0).to(tl.int32)
    if starts is not None:
        first = tl.load(starts + sequence, mask=live, other=0).to(tl.int32)
    return first, first + length


@triton.jit
def _clip(row, rows):
    return tl.minimum(tl.maximum(row, 0), rows)


@triton.jit
def _runs(lengths, starts, sequence, live, whole, KEYS: tl.constexpr):
    """First row of sequences' keys, the row after the last, and in how many blocks these are read."""
    first, stop = _span(lengths, starts, sequence, live, whole)
    first, stop = _clip(first, whole), _clip(stop, whole)
    return first, stop, tl.where(live, tl.maximum(tl.cdiv(stop - first, KEYS), 0), 0)


@triton.jit
def _begins_prefix(lengths, starts, sequence, live, first_sequence):
    """Whether a sequence has another prefix than the one before it, or is the first of the tile."""
    begins = live & (sequence == first_sequence)
    if lengths is not None:
        first, stop = _span(lengths, starts, sequence, live, 0)
        before = live & (sequence > first_sequence)
        other_first, other_stop = _span(lengths, starts, tl.where(before, sequence - 1, sequence), before, 0)
        begins = begins | (before & ((first != other_first) | (stop != other_stop)))
    return begins


@triton.jit
def _prefixes(lengths, starts, number, there, first_sequence, sequence, whole, KEYS: tl.constexpr):
    """The runs of sequences' prefixes, a prefix of neighbours once, and their numbers in the tile: also of its rows."""
    first, stop, blocks = _runs(lengths, starts, number, there, whole, KEYS)
    begins = _begins_prefix(lengths, starts, number, there, first_sequence).to(tl.int32)
    row_prefix = tl.sum(tl.where(number[None, :] <= sequence[:, None], begins[None, :], 0), 1)
    return first, stop, blocks * begins, tl.cumsum(begins, 0), row_prefix


@triton.jit
def _pick(chosen, values):
    """The one of ``values`` that is ``chosen``."""
    return tl.sum(tl.where(chosen, values, 0), 0)


@triton.jit
def _find(block, first, stop, blocks, stops, KEYS: tl.constexpr):
    """Which run a block belongs to, as a mask, the KEYS rows that it reads, and which of them are the run's."""
    chosen = (stops - blocks <= block) & (block < stops)
    column = _pick(chosen, first + (block - stops + blocks) * KEYS) + tl.arange(0, KEYS)
    return chosen, column, column < _pick(chosen, stop)


@triton.jit
def _step(
    query, k, v, k_row, v_row, column, inside, seen, bias, counts, factor, peak, mass, mean, top, bulk, drop,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Fold the rows ``column`` of k and v into the softmax where ``seen``, and into the entropy if they count, too.

    ``bias`` points to the rows' biases, or is None; ``counts`` (keys,) is for the entropy, if it is wanted.
    """
    keys = _load_rows(k, column, k_row, inside, HEAD_DIM, WIDTH)
    values = _load_rows(v, column, v_row, inside, HEAD_DIM, WIDTH)
    scores = tl.dot(query, keys.T, input_precision=PRECISION) * factor
    if bias is not None:
        scores += (tl.load(bias + column, mask=inside, other=0.0) * LOG2E)[None, :]
    scores = tl.where(seen, scores, -float("inf"))
    if ENTROPY:
        top, bulk, drop = _fold_entropy(tl.where(counts[None, :], scores, -float("inf")), top, bulk, drop)
    peak, mass, mean = _fold(scores, values, peak, mass, mean, PRECISION)
    return peak, mass, mean, top, bulk, drop


@triton.jit
def _hand_in(
    mean_parts, state_parts, counter, parts, slot, slots, peak, mass, mean, top, bulk, drop,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Write this part's softmax; whether it was the last of the tile's ``parts``, whose first has ``slot``."""
    flat = (slot + tl.program_id(1)) * ROWS + tl.arange(0, ROWS)
    tl.store(state_parts + flat, peak)
    tl.store(state_parts + slots * ROWS + flat, mass)
    if ENTROPY:
        tl.store(state_parts + 2 * slots * ROWS + flat, top)
        tl.store(state_parts + 3 * slots * ROWS + flat, bulk)
        tl.store(state_parts + 4 * slots * ROWS + flat, drop)
    tl.store(mean_parts + flat[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], mean)
    tl.debug_barrier()  # every thread has written before one of them counts
    return tl.atomic_add(counter, 1) == parts - 1


@triton.jit
def _handed_in(state_parts, number, slots, flat, ROWS: tl.constexpr):
    return tl.load(state_parts + number * slots * ROWS + flat, cache_modifier=".cg")


@triton.jit
def _merge(mean_parts, state_parts, parts, slot, slots, ROWS: tl.constexpr, WIDTH: tl.constexpr, ENTROPY: tl.constexpr):
    """Sum the partial softmaxes of a tile's parts in order, those of the entropy too; ``slot`` is that of the first."""
    rows = tl.arange(0, ROWS)
    inside = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    peak, mass, mean = _nothing(ROWS, WIDTH)
    top, bulk, drop = peak, mass, mass
    for part in range(parts):
        flat = (slot + part) * ROWS + rows
        part_mean = tl.load(mean_parts + (slot + part) * ROWS * WIDTH + inside, cache_modifier=".cg")
        peak, fade, part_fade = _join(peak, _handed_in(state_parts, 0, slots, flat, ROWS))
        mass = mass * fade + _handed_in(state_parts, 1, slots, flat, ROWS) * part_fade
        mean = mean * fade[:, None] + part_mean * part_fade[:, None]
        if ENTROPY:
            part_top = _handed_in(state_parts, 2, slots, flat, ROWS)
            part_bulk = _handed_in(state_parts, 3, slots, flat, ROWS)
            part_drop = _handed_in(state_parts, 4, slots, flat, ROWS)
            top, bulk, drop = _join_entropy(top, bulk, drop, part_top, part_bulk, part_drop)
    return peak, mass, mean, bulk, drop


@triton.jit
def _share(
    mean_parts, state_parts, counters, parts, peak, mass, mean, top, bulk, drop,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Whether this program finishes the tile of ``parts`` programs, and if so the softmax over all of its keys."""
    finished = True
    if parts > 1:
        tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        slot = tile.to(tl.int64) * tl.num_programs(1)
        slots = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) * tl.num_programs(2)
        finished = _hand_in(
            mean_parts, state_parts, counters + tile, parts, slot, slots, peak, mass, mean, top, bulk, drop,
            ROWS, WIDTH, ENTROPY,
        )  # fmt: skip
        if finished:
            tl.store(counters + tile, 0)
            peak, mass, mean, bulk, drop = _merge(mean_parts, state_parts, parts, slot, slots, ROWS, WIDTH, ENTROPY)
    return finished, peak, mass, mean, bulk, drop


@triton.jit
def _store(
    out, lse, entropy, flat, live, peak, mass, mean, bulk, drop, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Write the rows ``flat`` of the outputs; a row that sees nothing gives zeros."""
    columns = tl.arange(0, WIDTH)
    within = live[:, None] & (columns < HEAD_DIM)[None, :]
    mean = mean / tl.where(mass == 0.0, 1.0, mass)[:, None]
    tl.store(out + flat[:, None] * HEAD_DIM + columns[None, :], mean.to(out.dtype.element_ty), mask=within)
    if lse is not None:
        tl.store(lse + flat, (peak + tl.log2(mass)) / LOG2E, mask=live)
    if entropy is not None:
        tl.store(entropy + flat, _nats(bulk, drop), mask=live)


@triton.jit(do_not_specialize=["batch", "q_len", "shared_len", "max_len", "sinks"])
def attention(
    q, shared_k, shared_v, own_k, own_v, out, lse, entropy,
    own_lengths, own_starts, shared_lengths, shared_starts, shared_bias, mean_parts, state_parts, counters,
    scale, batch, group, q_len, shared_len, max_len, sinks,
    q_batch, q_head, q_row, sk_head, sk_row, sv_head, sv_row, k_batch, k_head, k_row, v_batch, v_head, v_row, bias_head,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SEQUENCES: tl.constexpr,
    PART: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the (batch, group, q_len) rows of one key head, over this part of the keys that they see."""
    kv_head = tl.program_id(2).to(tl.int64)
    per_sequence = group * q_len
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < batch * per_sequence
    sequence, member = row // per_sequence, row % per_sequence
    head, step_back = kv_head * group + member // q_len, q_len - member % q_len

    first_sequence = tl.program_id(0) * ROWS // per_sequence
    number = first_sequence + tl.arange(0, SEQUENCES)
    there = number <= (tl.minimum(tl.program_id(0) * ROWS + ROWS, batch * per_sequence) - 1) // per_sequence
    first, stop, run_blocks, prefix, row_prefix = _prefixes(
        shared_lengths, shared_starts, number, there, first_sequence, sequence, shared_len, KEYS
    )
    prefix_blocks, prefix_len = tl.sum(run_blocks, 0), tl.maximum(stop - first, 0)
    own_first, own_stop, own_blocks = _runs(own_lengths, own_starts, number, there, max_len, KEYS)
    blocks = prefix_blocks + tl.sum(own_blocks, 0)

    part, parts = 0, 1
    if counters is not None:
        part, parts = tl.program_id(1), tl.minimum(tl.maximum(blocks // PART, 1), tl.num_programs(1))
        if part >= parts:
            return
    places = sequence.to(tl.int64) * q_batch + head * q_head + (member % q_len).to(tl.int64) * q_row
    query = _load_rows(q, places, 1, live, HEAD_DIM, WIDTH)
    last = _span(own_lengths, own_starts, sequence, live, max_len)[1] - step_back  # the last own row that a row sees
    peak, mass, mean = _nothing(ROWS, WIDTH)
    top, bulk, drop = peak, mass, mass
    from_block, to_block = part * blocks // parts, (part + 1) * blocks // parts

    run_stops = tl.cumsum(run_blocks, 0)
    head_k, head_v = shared_k + kv_head * sk_head, shared_v + kv_head * sv_head
    bias = None if shared_bias is None else shared_bias + kv_head * bias_head
    for block in range(from_block, tl.minimum(to_block, prefix_blocks)):
        if shared_lengths is None:  # one prefix, which all rows see
            column = block * KEYS + tl.arange(0, KEYS)
            inside = column < shared_len
            seen, counts = inside[None, :], column >= sinks
        else:
            chosen, column, inside = _find(block, first, stop, run_blocks, run_stops, KEYS)
            seen = inside[None, :] & (row_prefix == _pick(chosen, prefix))[:, None]
            counts = column >= _pick(chosen, first) + sinks
        peak, mass, mean, top, bulk, drop = _step(
            query, head_k, head_v, sk_row, sv_row, column, inside, seen, bias, counts, scale * LOG2E,
            peak, mass, mean, top, bulk, drop, HEAD_DIM, WIDTH, PRECISION, entropy is not None,
        )  # fmt: skip

    run_stops = prefix_blocks + tl.cumsum(own_blocks, 0)
    for block in range(tl.maximum(from_block, prefix_blocks), to_block):
        chosen, column, inside = _find(block, own_first, own_stop, own_blocks, run_stops, KEYS)
        owner = _pick(chosen, number)
        seen = inside[None, :] & (column[None, :] <= tl.where(sequence == owner, last, -1)[:, None])
        counts = column >= _pick(chosen, own_first + tl.maximum(sinks - prefix_len, 0))
        its_k = own_k + owner.to(tl.int64) * k_batch + kv_head * k_head
        its_v = own_v + owner.to(tl.int64) * v_batch + kv_head * v_head
        peak, mass, mean, top, bulk, drop = _step(
            query, its_k, its_v, k_row, v_row, column, inside, seen, None, counts, scale * LOG2E,
            peak, mass, mean, top, bulk, drop, HEAD_DIM, WIDTH, PRECISION, entropy is not None,
        )  # fmt: skip

    finished = True
    if counters is not None:
        finished, peak, mass, mean, bulk, drop = _share(
            mean_parts, state_parts, counters, parts, peak, mass, mean, top, bulk, drop, ROWS, WIDTH,
            entropy is not None,
        )  # fmt: skip
    if finished:
        flat = (sequence.to(tl.int64) * tl.num_programs(2) * group + head) * q_len + member % q_len
        _store(out, lse, entropy, flat, live, peak, mass, mean, bulk, drop, HEAD_DIM, WIDTH)
