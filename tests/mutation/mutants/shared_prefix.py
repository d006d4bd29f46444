"""Faults of shared-prefix attention."""

from __future__ import annotations

from functools import partial

from tests.mutation.mutant import Mutant

TESTS = "tests/lcc_kernels/shared_prefix"
VALUES = f"{TESTS}/test_shared_prefix_values.py -k 'triton and float32'"
OPTIONS = f"{TESTS}/test_shared_prefix_options.py -k 'triton and float32'"
GROUPS = f"{TESTS}/test_shared_prefix_values.py -k 'triton and head_groups'"
SINKS = f"{TESTS}/test_shared_prefix_options.py -k 'triton and sinks'"
TRITON = f"{TESTS}/test_shared_prefix_triton.py"
SPLITS = f"{TRITON} -k splits"
TORCH = f"{TESTS}/test_shared_prefix_values.py {TESTS}/test_shared_prefix_options.py -k 'torch and float32'"
FAR = "tests/lcc_kernels/test_far_apart.py -k shared_prefix_triton"

kernel = partial(Mutant, file="lcc_kernels/shared_prefix/triton_kernel.py", interpreted=True, tests=OPTIONS)
launch = partial(Mutant, file="lcc_kernels/shared_prefix/launch.py", interpreted=True, tests=VALUES)
torch_path = partial(Mutant, file="lcc_kernels/shared_prefix/torch_path.py", tests=TORCH)

MUTANTS = (
    launch(
        "shared_prefix/shared-values-with-the-strides-of-keys",
        old="strides = [stride for x in inputs for",
        new="strides = [stride for x in (*inputs[:2], inputs[1], *inputs[3:]) for",
    ),
    launch(
        "shared_prefix/own-values-with-the-strides-of-keys",
        old="strides = [stride for x in inputs for",
        new="strides = [stride for x in (*inputs[:4], inputs[3]) for",
    ),
    launch(
        "shared_prefix/lengths-with-unit-stride",
        old="None if x is None else x.contiguous() for x in b[5:9]",
        new="x for x in b[5:9]",
        tests=OPTIONS,
    ),
    launch(
        "shared_prefix/counters-never-grow",
        old="if key not in _counters or len(_counters[key]) < count:",
        new="if key not in _counters:",
        tests=f"{TRITON} -k grow",
    ),
    launch(
        "shared_prefix/one-tf32-product-for-float32",
        old='"tf32x3" if',
        new='"tf32" if',
        tests=f"{TRITON} -k never_cut",
        interpreted=False,
    ),
    launch("shared_prefix/bias-of-the-first-head", old="0 if bias is None else bias.stride(0)", new="0", tests=OPTIONS),
    launch("shared_prefix/states-too-few-for-an-entropy", old="2 if b.sinks is None else 5", new="2", tests=OPTIONS),
    kernel(
        "shared_prefix/no-barrier-before-the-counter",
        old="    tl.debug_barrier()  # every thread has written before one of them counts\n",
        new="",
        tests=f"{TESTS}/test_shared_prefix_aot.py -k all_threads",
        interpreted=False,
        harmless="Triton 3.7 puts a barrier of its own before every atomic: the PTX is the same",
    ),
    kernel("shared_prefix/counter-not-reset", old="            tl.store(counters + tile, 0)\n", new="", tests=SPLITS),
    kernel(
        "shared_prefix/parts-merged-without-their-weight",
        old="_handed_in(state_parts, 1, slots, flat, ROWS) * part_fade",
        new="_handed_in(state_parts, 1, slots, flat, ROWS)",
        tests=SPLITS,
    ),
    kernel(
        "shared_prefix/merged-mean-does-not-fade",
        old="mean = mean * fade[:, None] + part_mean * part_fade[:, None]",
        new="mean = mean + part_mean * part_fade[:, None]",
        tests=SPLITS,
    ),
    kernel(
        "shared_prefix/last-part-left-out",
        old="for part in range(parts):",
        new="for part in range(parts - 1):",
        tests=SPLITS,
    ),
    kernel(
        "shared_prefix/slot-of-another-head",
        old="tile = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)",
        new="tile = tl.program_id(0)",
        tests=SPLITS,
    ),
    kernel(
        "shared_prefix/own-rows-one-too-many",
        old="own_starts, sequence, live, max_len)[1] - step_back",
        new="own_starts, sequence, live, max_len)[1] - step_back + 1",
        tests=VALUES,
    ),
    kernel(
        "shared_prefix/own-rows-of-neighbours",
        old="tl.where(sequence == owner, last, -1)",
        new="tl.where(sequence <= owner, last, -1)",
        tests=VALUES,
    ),
    kernel(
        "shared_prefix/prefix-tail-is-seen",
        old="seen, counts = inside[None, :], column >= sinks",
        new="seen, counts = inside[None, :] | True, column >= sinks",
        tests=VALUES,
    ),
    kernel(
        "shared_prefix/neighbours-prefix-is-seen",
        old="(row_prefix == _pick(chosen, prefix))[:, None]",
        new="(row_prefix <= _pick(chosen, prefix))[:, None]",
    ),
    kernel(
        "shared_prefix/prefixes-told-apart-by-their-start-alone",
        old="((first != other_first) | (stop != other_stop))",
        new="(first != other_first)",
    ),
    kernel(
        "shared_prefix/prefixes-told-apart-by-their-end-alone",
        old="((first != other_first) | (stop != other_stop))",
        new="(stop != other_stop)",
    ),
    kernel(
        "shared_prefix/int32-row-offsets",
        old="rows.to(tl.int64)[:, None] * row_stride",
        new="rows[:, None] * row_stride",
        tests=FAR,
    ),
    kernel(
        "shared_prefix/int32-sequence-offsets-of-q",
        old="places = sequence.to(tl.int64) * q_batch",
        new="places = sequence * q_batch",
        tests=FAR,
    ),
    kernel(
        "shared_prefix/int32-sequence-offsets-of-own-values",
        old="its_v = own_v + owner.to(tl.int64) * v_batch",
        new="its_v = own_v + owner * v_batch",
        tests=FAR,
    ),
    kernel(
        "shared_prefix/int32-head-offsets",
        old="kv_head = tl.program_id(2).to(tl.int64)",
        new="kv_head = tl.program_id(2)",
        tests=FAR,
    ),
    kernel(
        "shared_prefix/query-heads-of-the-next-group",
        old="kv_head * group + member // q_len",
        new="kv_head + member // q_len",
        tests=GROUPS,
    ),
    kernel("shared_prefix/bias-not-in-base-2", old="other=0.0) * LOG2E)[None, :]", new="other=0.0))[None, :]"),
    kernel(
        "shared_prefix/bias-on-own-keys",
        old="column, inside, seen, None, counts",
        new="column, inside, seen, bias, counts",
    ),
    kernel(
        "shared_prefix/lse-in-base-2",
        old="(peak + tl.log2(mass)) / LOG2E, mask=live",
        new="peak + tl.log2(mass), mask=live",
    ),
    kernel("shared_prefix/lse-without-the-peak", old="(peak + tl.log2(mass)) / LOG2E", new="tl.log2(mass) / LOG2E"),
    kernel(
        "shared_prefix/sinks-off-by-one",
        old="counts = column >= _pick(chosen, first) + sinks",
        new="counts = column > _pick(chosen, first) + sinks",
        tests=SINKS,
    ),
    kernel(
        "shared_prefix/sinks-of-one-prefix-off-by-one",
        old="inside[None, :], column >= sinks",
        new="inside[None, :], column > sinks",
        tests=OPTIONS,
    ),
    kernel("shared_prefix/sinks-are-no-own-rows", old="tl.maximum(sinks - prefix_len, 0)", new="0", tests=SINKS),
    kernel(
        "shared_prefix/entropy-top-does-not-move",
        old="drop = fade * (drop + _times(bulk, top - _finite(higher)))",
        new="drop = fade * drop",
        tests=OPTIONS,
    ),
    kernel(
        "shared_prefix/entropy-of-the-other-part-does-not-fade",
        old="return higher, bulk * fade + other_bulk * other_fade,",
        new="return higher, bulk * fade + other_bulk,",
        tests=OPTIONS,
    ),
    kernel(
        "shared_prefix/nan-entropy-becomes-0",
        old="return tl.where(nats < 0.0, 0.0, nats)",
        new="return tl.maximum(nats, 0.0)",
        tests=f"{TESTS}/test_shared_prefix_options.py -k 'triton and nan'",
    ),
    kernel(
        "shared_prefix/entropy-not-clamped",
        old="return tl.where(nats < 0.0, 0.0, nats)",
        new="return nats",
        tests=f"{TESTS}/test_shared_prefix_options.py -k 'triton and sinks'",
        harmless="no state gives an entropy below 0: its bulk is at least 1, and its drop at most 0",
    ),
    kernel(
        "shared_prefix/starts-not-clipped",
        old="return tl.minimum(tl.maximum(row, 0), rows)",
        new="return tl.minimum(row, rows)",
        tests=f"{TRITON} -k outside",
    ),
    Mutant(
        "shared_prefix/sequences-of-a-tile-one-too-few",
        file="lcc_kernels/shared_prefix/plan.py",
        old="else (rows - 2) // each + 2",
        new="else (rows - 2) // each + 1",
        tests=VALUES,
        interpreted=True,
    ),
    torch_path(
        "shared_prefix/torch-first-own-row-forgotten",
        old="rows = torch.arange(first_row, b.own_k.shape[2]",
        new="rows = torch.arange(0, b.own_k.shape[2]",
        tests=f"{TESTS}/test_shared_prefix_options.py -k 'torch and sinks'",
    ),
    torch_path(
        "shared_prefix/torch-sinks-leave-nothing-over",
        old="if not mass.amin() < info.tiny / info.eps:",
        new="if True:",
        tests=f"{TESTS}/test_shared_prefix_entropy.py -k 'torch and rounds'",
    ),
    torch_path(
        "shared_prefix/torch-hidden-nan-times-0",
        old="weights @ values.masked_fill(unseen[:, :, -1, :, None], 0.0)",
        new="weights @ values",
    ),
    Mutant(
        "shared_prefix/torch-a-query-sees-the-next-row",
        file="lcc_kernels/shared_prefix/batch.py",
        old="torch.arange(q_len - 1, -1, -1,",
        new="torch.arange(q_len - 2, -2, -1,",
        tests=TORCH,
    ),
)
