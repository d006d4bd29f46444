"""Faults of bottleneck attention."""

from __future__ import annotations

from functools import partial

from tests.mutation.mutant import Mutant

TESTS = "tests/lcc_kernels/bottleneck"
BACKENDS = f"{TESTS}/test_bottleneck_backends.py"
LAYOUTS = f"{BACKENDS} -k 'triton and float32 and (packed or zero)'"
SPLITS = f"{TESTS}/test_bottleneck_triton.py -k split_reductions"
HEADS = f"{BACKENDS} -k 'triton and heads_and_dims'"
TORCH = f"{BACKENDS} -k 'torch and as_accurate and float32'"
BLOCKS = f"{TESTS}/test_bottleneck_op.py -k blocks_equal"
SCHEDULE = f"{TESTS}/test_bottleneck_schedule.py"
FAR = "tests/lcc_kernels/test_far_apart.py -k bottleneck_triton"
PRECISION = f"{TESTS}/test_bottleneck_triton.py -k never_cut"

kernel = partial(Mutant, file="lcc_kernels/bottleneck/triton_kernel.py", interpreted=True)
schedule = partial(Mutant, file="lcc_kernels/bottleneck/schedule.py", tests=SCHEDULE)
plain = partial(Mutant, file="lcc_kernels/plain_attention.py", tests=TORCH)

MUTANTS = (
    kernel(
        "bottleneck/shared-tail-one-key-too-many", old="rows, shared_hi - 1)", new="rows, shared_hi)", tests=LAYOUTS
    ),
    kernel(
        "bottleneck/partial-dk-without-scale",
        old="tl.store(partial_k + where + inside, gained_k * scale)",
        new="tl.store(partial_k + where + inside, gained_k)",
        tests=SPLITS,
    ),
    kernel(
        "bottleneck/int32-row-offsets-of-inputs",
        old="first.to(tl.int64) * row_stride + rows.to(tl.int64)[:, None] * row_stride",
        new="first * row_stride + rows[:, None] * row_stride",
        tests=FAR,
    ),
    kernel(
        "bottleneck/int32-row-offsets-of-outputs",
        old="origin = pointer + first.to(tl.int64) * row_stride",
        new="origin = pointer + first * row_stride",
        tests=FAR,
    ),
    kernel(
        "bottleneck/one-tf32-product-for-float32",
        old='"tf32x3" if',
        new='"tf32" if',
        tests=PRECISION,
        interpreted=False,
    ),
    schedule(
        "bottleneck/shortest-tile-first",
        old="return sorted(table, key=lambda tile: tile[2] - tile[1] + tile[4] - tile[5])",
        new="return sorted(table, key=lambda tile: tile[1] - tile[2] + tile[5] - tile[4])",
    ),
    schedule(
        "bottleneck/shortest-key-tile-first",
        old="key=lambda tile: tile[2] - tile[4]), reduce",
        new="key=lambda tile: tile[4] - tile[2]), reduce",
    ),
    kernel(
        "bottleneck/padded-rows-keep-a-gradient",
        old='log_mass = tl.load(lse + flat + rows, mask=rows < masked, other=float("inf"))',
        new="log_mass = tl.load(lse + flat + rows, mask=rows < masked, other=0.0)",
        tests=LAYOUTS,
        harmless="the rows' queries and upstream gradients are loaded as zeros: all that they add is 0 times a number",
    ),
    kernel(
        "bottleneck/values-with-the-strides-of-keys",
        old="strides = [stride for x in (q, k, v) for",
        new="strides = [stride for x in (q, k, k) for",
        tests=LAYOUTS,
    ),
    kernel(
        "bottleneck/grad-with-the-strides-of-q",
        old="strides = [stride for x in (grad, q, k, v) for",
        new="strides = [stride for x in (q, q, k, v) for",
        tests=LAYOUTS,
    ),
    kernel(
        "bottleneck/values-with-the-strides-of-keys-backwards",
        old="strides = [stride for x in (grad, q, k, v) for",
        new="strides = [stride for x in (grad, q, k, k) for",
        tests=LAYOUTS,
    ),
    kernel(
        "bottleneck/query-heads-of-another-group",
        old="(q + batch * q_batch + head * q_head, row, q_row, last,",
        new="(q + batch * q_batch + head // group * q_head, row, q_row, last,",
        tests=HEADS,
    ),
    kernel(
        "bottleneck/scale-twice-in-dq",
        old="gained * scale, start",
        new="gained * scale * scale, start",
        tests=LAYOUTS,
    ),
    kernel(
        "bottleneck/lse-in-base-2", old="peak / LOG2E + tl.log(mass)", new="peak / LOG2E + tl.log2(mass)", tests=LAYOUTS
    ),
    kernel(
        "bottleneck/peak-does-not-fade",
        old="mass * fade + tl.sum(weights, 1), mean",
        new="mass + tl.sum(weights, 1), mean",
        tests=LAYOUTS,
    ),
    kernel("bottleneck/delta-dropped", old="- delta[None, :])", new=")", tests=LAYOUTS),
    kernel(
        "bottleneck/diagonal-one-key-too-many",
        old="columns[None, :] <= last[:, None]",
        new="columns[None, :] <= last[:, None] + 1",
        tests=LAYOUTS,
    ),
    kernel(
        "bottleneck/last-slot-left-out", old="range(slot_lo, slot_hi)", new="range(slot_lo, slot_hi - 1)", tests=SPLITS
    ),
    kernel(
        "bottleneck/partial-sums-of-another-head",
        old="(slot.to(tl.int64) * pairs + flat_kv)",
        new="(slot.to(tl.int64) * pairs + kv_head)",
        tests=SPLITS,
    ),
    kernel(
        "bottleneck/whole-step-skips-the-first-shared-block",
        old="shared_lo + (step - own_steps) * KEYS)",
        new="shared_lo + (step - own_steps + 1) * KEYS)",
        tests=SPLITS,
    ),
    schedule(
        "bottleneck/whole-keys-one-tile-too-far",
        old="whole = (start - first) // keys * keys",
        new="whole = -(-(start - first) // keys) * keys",
    ),
    schedule(
        "bottleneck/mask-ends-too-early",
        old="diagonal = start + -(-(stop - start) // rows) * rows",
        new="diagonal = start + (stop - start) // rows * rows",
    ),
    schedule(
        "bottleneck/tiles-that-share-a-slot",
        old="slots += 1 + len(splits)",
        new="slots += len(splits)",
        tests=SPLITS,
        interpreted=True,
    ),
    plain("bottleneck/torch-causal-off-by-one", old="triu(rows.start + 1)", new="triu(rows.start)", tests=BLOCKS),
    plain("bottleneck/torch-delta-dropped", old="(grad_weights - delta)", new="grad_weights", tests=BLOCKS),
    plain("bottleneck/torch-merge-forgets-a-weight", old="piece * (piece_lse - both).exp()[..., None]", new="piece"),
    plain("bottleneck/torch-gradient-of-one-of-the-group", old="grad.sum(1, keepdim=True)", new="grad[:, :1]"),
)
