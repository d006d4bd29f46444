"""Shared-prefix attention in one launch (FlashAttention-2's running softmax over the prefix, then the own keys).

A program holds a tile of rows of one key head, taken from (batch, group, q_len) in that order, so that the prefix is
read once a tile and not once a sequence: with 8 key heads of 128 in bfloat16, a prefix of 2,048 and 32 sequences in
groups of 4, the tiles read 34 MB (4 tiles of 32 rows) where one attention a sequence reads 268 MB. The own keys of the
tile's sequences follow in the same running softmax, each under a mask of its rows: a tile of 64 rows spends 64
operations a byte on them where a GPU has over 160 to spare, so they cost what reading them costs.

When tiles are too few for the GPU, several programs share one, each with a part of its keys. The last to finish, told
by a counter, adds their partial sums in a fixed order: still one launch, and two runs give the same bits.

A nan in a sequence's own rows may reach the other sequences of its tile, as in any tiled attention.
"""

# mypy: disable-error-code="no-untyped-def"
# Arguments of a kernel are pointers and scalars of Triton's language, which has no annotations for them.

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..dispatch import interpreting
from ..tiles import Tile, architecture
from .batch import PrefixBatch
from .tiles import Work, plan, tiles

LOG2E = tl.constexpr(1.4426950408889634)
WIDEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}  # head_dim, by dtype
_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def forward(b: PrefixBatch) -> torch.Tensor:
    """Return out like q."""
    q = b.q
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in b[:5]]
    starts = None if b.own_starts is None else b.own_starts.contiguous()
    (batch, heads, q_len, head_dim), kv_heads = q.shape, len(b.shared_k)
    per_sequence = heads // kv_heads * q_len
    work = Work(kv_heads, batch * per_sequence, per_sequence, b.shared_k.shape[1], b.own_k.shape[2])
    tile, splits = _plan(q, work)
    grid = triton.cdiv(work.rows, tile.rows), splits, kv_heads
    strides = [stride for x in inputs for stride in x.stride()[:-1]]
    with torch.cuda.device_of(q):
        _forward[grid](
            *inputs, out, b.own_lengths.contiguous(), starts, *_scratch(q, grid, tile),
            b.scale, batch, heads // kv_heads, q_len, work.shared, work.own, *strides,
            **constants(head_dim, q.dtype, tile), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


def refuses(b: PrefixBatch) -> str | None:
    """Why the kernel cannot take these sequences, or None."""
    q = b.q
    if q.dtype not in WIDEST:
        return f"{q.dtype} has no tensor-core path: use float16, bfloat16 or float32, or backend='torch'"
    if not 16 <= q.shape[-1] <= WIDEST[q.dtype]:
        return f"head_dim {q.shape[-1]} is outside 16 ... {WIDEST[q.dtype]} in {q.dtype}: use backend='torch'"
    if interpreting() and q.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 in it"
    return None


def constants(head_dim: int, dtype: torch.dtype, tile: Tile) -> dict[str, int | str]:
    """What the kernel is compiled for: the padded head, the tile, and how float32 products are split."""
    return {
        "HEAD_DIM": head_dim,
        "WIDTH": triton.next_power_of_2(head_dim),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }


def _plan(q: torch.Tensor, work: Work) -> tuple[Tile, int]:
    processors = 4 if interpreting() else torch.cuda.get_device_properties(q.device).multi_processor_count
    return plan(tiles(architecture(q.device), q.shape[-1], q.dtype), work, processors)


def _scratch(q: torch.Tensor, grid: tuple[int, int, int], tile: Tile) -> tuple[torch.Tensor | None, ...]:
    """Partial means (kv_heads, tiles, splits, ROWS, WIDTH), their peaks and masses (..., ROWS), and tiles' counters.

    All None where no tile is split: the kernel is then compiled without a merge.
    """
    row_tiles, splits, kv_heads = grid
    if splits == 1:
        return (None,) * 4
    width = triton.next_power_of_2(q.shape[-1])
    mean = torch.empty(kv_heads, row_tiles, splits, tile.rows, width, dtype=torch.float32, device=q.device)
    peak, mass = mean.new_empty(2, *mean.shape[:-1])
    return mean, peak, mass, _zero_counters(q.device, kv_heads * row_tiles)


def _zero_counters(device: torch.device, count: int) -> torch.Tensor:
    """Zeros (count,) int32, which the kernel leaves as it found them: they are kept, a set for each stream.

    A captured graph gets its own, since what is allocated and filled under capture is filled on replay alone.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if key not in _counters or len(_counters[key]) < count:
        _counters[key] = torch.zeros(max(1024, 2 * count), dtype=torch.int32, device=device)
    return _counters[key]


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
def _fold(query, keys, values, seen, peak, mass, mean, factor, PRECISION: tl.constexpr):
    """Fold keys into the running softmax where ``seen`` (rows, keys)."""
    scores = tl.where(seen, tl.dot(query, keys.T, input_precision=PRECISION) * factor, -float("inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - _finite(higher)[:, None])
    fade = tl.exp2(peak - _finite(higher))
    mean = tl.dot(weights.to(values.dtype), values, mean * fade[:, None], input_precision=PRECISION)
    return higher, mass * fade + tl.sum(weights, 1), mean


@triton.jit
def _own_rows(own_lengths, own_starts, sequence, live):
    """First own row of sequences, and the row after their last, as given: they may lie outside the cache."""
    length = tl.load(own_lengths + sequence, mask=live, other=0).to(tl.int32)
    first = length * 0
    if own_starts is not None:
        first = tl.load(own_starts + sequence, mask=live, other=0).to(tl.int32)
    return first, first + length


@triton.jit
def _clip(row, max_len):
    return tl.minimum(tl.maximum(row, 0), max_len)


@triton.jit
def _hand_in(
    mean_parts, peak_parts, mass_parts, counter, slot, peak, mass, mean, ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Write this split's partial softmax; whether it was the tile's last. ``slot`` is that of the first split."""
    flat = (slot + tl.program_id(1)) * ROWS + tl.arange(0, ROWS)
    tl.store(peak_parts + flat, peak)
    tl.store(mass_parts + flat, mass)
    tl.store(mean_parts + flat[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], mean)
    tl.debug_barrier()  # every thread has written before one of them counts
    return tl.atomic_add(counter, 1) == tl.num_programs(1) - 1


@triton.jit
def _merge(mean_parts, peak_parts, mass_parts, slot, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum the partial softmaxes of all splits in order; ``slot`` is that of the first."""
    rows = tl.arange(0, ROWS)
    inside = rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, WIDTH], tl.float32)
    for split in range(tl.num_programs(1)):
        flat = (slot + split) * ROWS
        part_peak = tl.load(peak_parts + flat + rows, cache_modifier=".cg")
        part_mass = tl.load(mass_parts + flat + rows, cache_modifier=".cg")
        part_mean = tl.load(mean_parts + flat * WIDTH + inside, cache_modifier=".cg")
        higher = tl.maximum(peak, part_peak)
        fade, part_fade = tl.exp2(peak - _finite(higher)), tl.exp2(part_peak - _finite(higher))
        mean = mean * fade[:, None] + part_mean * part_fade[:, None]
        mass = mass * fade + part_mass * part_fade
        peak = higher
    return mass, mean


@triton.jit(do_not_specialize=["batch", "q_len", "shared_len", "max_len"])
def _forward(
    q, shared_k, shared_v, own_k, own_v, out, own_lengths, own_starts, mean_parts, peak_parts, mass_parts, counters,
    scale, batch, group, q_len, shared_len, max_len,
    q_batch, q_head, q_row, sk_head, sk_row, sv_head, sv_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the (batch, group, q_len) rows of one key head, over this split's part of the keys they see."""
    kv_head = tl.program_id(2).to(tl.int64)
    per_sequence = group * q_len
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < batch * per_sequence
    sequence, member = row // per_sequence, row % per_sequence
    head, step_back = kv_head * group + member // q_len, q_len - member % q_len
    places = sequence.to(tl.int64) * q_batch + head * q_head + (member % q_len).to(tl.int64) * q_row
    query = _load_rows(q, places, 1, live, HEAD_DIM, WIDTH)
    first, stop = _own_rows(own_lengths, own_starts, sequence, live)
    last = stop - step_back  # the last own row that a row sees
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    mean = tl.zeros([ROWS, WIDTH], tl.float32)
    factor = scale * LOG2E

    prefix_blocks = tl.cdiv(shared_len, KEYS)
    longest = tl.max(_clip(stop, max_len) - _clip(first, max_len))
    own_blocks = tl.maximum(tl.cdiv(longest, KEYS), 0)
    first_sequence, last_sequence = tl.min(sequence), tl.max(tl.where(live, sequence, 0))
    blocks = prefix_blocks + (last_sequence - first_sequence + 1) * own_blocks
    split, splits = tl.program_id(1), tl.num_programs(1)
    for block in range(split * blocks // splits, (split + 1) * blocks // splits):
        shared = block < prefix_blocks
        number = first_sequence + tl.where(shared, 0, (block - prefix_blocks) // tl.maximum(own_blocks, 1))
        own_first, own_stop = _own_rows(own_lengths, own_starts, number, True)
        own_start = _clip(own_first, max_len) + (block - prefix_blocks) % tl.maximum(own_blocks, 1) * KEYS
        column = tl.where(shared, block * KEYS, own_start) + tl.arange(0, KEYS)
        inside = column < tl.where(shared, shared_len, _clip(own_stop, max_len))
        k = tl.where(shared, shared_k + kv_head * sk_head, own_k + number.to(tl.int64) * k_batch + kv_head * k_head)
        v = tl.where(shared, shared_v + kv_head * sv_head, own_v + number.to(tl.int64) * v_batch + kv_head * v_head)
        keys = _load_rows(k, column, tl.where(shared, sk_row, k_row), inside, HEAD_DIM, WIDTH)
        values = _load_rows(v, column, tl.where(shared, sv_row, v_row), inside, HEAD_DIM, WIDTH)
        bound = tl.where(shared, shared_len - 1, tl.where(sequence == number, last, -1))  # the last key a row sees
        seen = inside[None, :] & (column[None, :] <= bound[:, None])
        peak, mass, mean = _fold(query, keys, values, seen, peak, mass, mean, factor, PRECISION)

    finished = True
    if counters is not None:
        tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        slot = tile.to(tl.int64) * splits
        finished = _hand_in(mean_parts, peak_parts, mass_parts, counters + tile, slot, peak, mass, mean, ROWS, WIDTH)
        if finished:
            mass, mean = _merge(mean_parts, peak_parts, mass_parts, slot, ROWS, WIDTH)
            tl.store(counters + tile, 0)
    if finished:
        columns = tl.arange(0, WIDTH)
        flat = (sequence.to(tl.int64) * tl.num_programs(2) * group + head) * q_len + member % q_len
        mean = mean / tl.where(mass == 0.0, 1.0, mass)[:, None]  # a row that sees nothing gives zeros
        inside = live[:, None] & (columns < HEAD_DIM)[None, :]
        tl.store(out + flat[:, None] * HEAD_DIM + columns[None, :], mean.to(out.dtype.element_ty), mask=inside)
