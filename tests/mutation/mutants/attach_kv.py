"""Faults of attach_kv, in Triton and in CUDA."""

from __future__ import annotations

from functools import partial

from tests.mutation.mutant import Mutant

TESTS = "tests/lcc_kernels/attach_kv"
VALUES = f"{TESTS}/test_attach_kv_values.py"
LAYOUTS = f"{VALUES} -k 'triton and (layouts or strided)'"
TRITON = f"{TESTS}/test_attach_kv_triton.py"
INT4 = f"{TESTS}/test_attach_kv_int4.py -k triton"
HOST = "tests/lcc_kernels/test_csrc.py -k attach_kernel"
FAR = "tests/lcc_kernels/test_far_apart.py -k attach_kv_triton"

kernel = partial(Mutant, file="lcc_kernels/attach_kv/triton_kernel.py", interpreted=True, tests=LAYOUTS)
cuda = partial(Mutant, file="csrc/attach_kv/attach.cuh", tests=HOST)
launcher = partial(Mutant, file="csrc/attach_kv/attach.cu", tests="tests/lcc_kernels/test_csrc.py")
torch_path = partial(Mutant, file="lcc_kernels/attach_kv/torch_path.py", tests=f"{VALUES} -k torch")

MUTANTS = (
    kernel(
        "attach_kv/writes-the-slot-behind-the-last",
        old="(slot < capacity))[:, None]",
        new="(slot <= capacity))[:, None]",
        tests=f"{TRITON} -k out_of_range",
    ),
    kernel(
        "attach_kv/writes-negative-slots",
        old="((slot >= 0) & (slot < capacity))",
        new="(slot < capacity)",
        tests=f"{TRITON} -k out_of_range",
    ),
    kernel(
        "attach_kv/values-with-the-strides-of-keys",
        old="*a.keys.stride(), *a.values.stride(),",
        new="*a.keys.stride(), *a.keys.stride(),",
    ),
    kernel(
        "attach_kv/value-cache-with-the-strides-of-keys",
        old="*strides(a.key_caches[0]), *strides(a.value_caches[0]),",
        new="*strides(a.key_caches[0]), *strides(a.key_caches[0]),",
    ),
    kernel(
        "attach_kv/sin-with-the-strides-of-cos",
        old="*a.cos.stride(), *a.sin.stride(),",
        new="*a.cos.stride(), *a.cos.stride(),",
    ),
    kernel(
        "attach_kv/value-scale-with-the-strides-of-the-key-scale",
        old="value_scale.stride()),",
        new="key_scale.stride()),",
    ),
    kernel(
        "attach_kv/int32-token-offsets",
        old="token = tl.program_id(0).to(tl.int64) * TOKENS",
        new="token = tl.program_id(0) * TOKENS",
        tests=FAR,
    ),
    kernel(
        "attach_kv/int32-layer-offsets",
        old="layer, first = tl.program_id(2).to(tl.int64),",
        new="layer, first = tl.program_id(2),",
        tests=FAR,
    ),
    kernel("attach_kv/int32-head-offsets", old="head = first.to(tl.int64)", new="head = first", tests=FAR),
    kernel(
        "attach_kv/int32-channel-offsets",
        old="places, inside = rows + (columns + FIRST).to(tl.int64) * channel,",
        new="places, inside = rows + (columns + FIRST) * channel,",
        tests=FAR,
    ),
    kernel(
        "attach_kv/int32-slots",
        old="other=-1).to(tl.int64)",
        new="other=-1).to(tl.int32)",
        tests=FAR,
    ),
    kernel(
        "attach_kv/second-half-of-cos-and-sin-is-the-first",
        old="factors = _load(table, rows, inside, channel, 0, ROTARY // 2, False)",
        new="factors = _load(table, rows, inside, channel, ROTARY // 2, ROTARY // 2, False)",
        harmless="both halves of a rotary table are equal, which attach_kv demands of its tables",
    ),
    kernel(
        "attach_kv/sine-with-the-wrong-sign", old="left * cosine - right * sine", new="left * cosine + right * sine"
    ),
    kernel(
        "attach_kv/right-half-turned-by-the-turned-left",
        old="turned, right = left * cosine - right * sine, right * cosine + left * sine",
        new="turned = left * cosine - right * sine\n        right = right * cosine + turned * sine",
    ),
    kernel(
        "attach_kv/key-scale-twice",
        old="left, right = left * left_scale, right * right_scale",
        new="left, right = left * left_scale * left_scale, right * right_scale * right_scale",
    ),
    kernel(
        "attach_kv/key-scale-missing-beside-the-rotary-part",
        old="rest *= _load(scales, scale_rows, known, ks_channel, ROTARY, HEAD_DIM - ROTARY, False)",
        new="rest *= 1.0",
        tests=f"{VALUES} -k 'triton and partial_rotary'",
    ),
    kernel(
        "attach_kv/key-groups-off-by-one",
        old="(rows.to(tl.int32) // key_run)",
        new="((rows.to(tl.int32) + 1) // key_run)",
        tests=INT4,
    ),
    kernel(
        "attach_kv/value-groups-of-the-first",
        old="runs = tl.arange(0, triton.next_power_of_2(HEAD_DIM))[None, :] // VALUE_RUN",
        new="runs = tl.arange(0, triton.next_power_of_2(HEAD_DIM))[None, :] // HEAD_DIM",
        tests=INT4,
    ),
    kernel(
        "attach_kv/nibbles-exchanged",
        old="low, high = x << 28 >> 28, x << 24 >> 28",
        new="high, low = x << 28 >> 28, x << 24 >> 28",
        tests=INT4,
    ),
    kernel(
        "attach_kv/nan-of-e4m3-is-a-number",
        old='tl.where((bits & 0x7F) == 0x7F, float("nan"), wide)',
        new="wide",
        tests=f"{VALUES} -k 'triton and e4m3'",
    ),
    kernel(
        "attach_kv/heads-of-the-last-group",
        old="tl.minimum(group, heads - first)",
        new="tl.minimum(group, heads - first - first // group)",
        tests=f"{TRITON} -k share",
    ),
    kernel(
        "attach_kv/value-layers-of-the-table",
        old="value_cache, vc_layer, table, layer + tl.num_programs(2)",
        new="value_cache, vc_layer, table, layer",
        tests=TRITON,
    ),
    kernel("attach_kv/only-the-first-copy", old="for _ in range(copies):", new="for _ in range(1):"),
    kernel(
        "attach_kv/unaligned-caches-are-said-to-be-aligned",
        old='"ALIGNED": not any(address % 16 for address in a.addresses)',
        new='"ALIGNED": True',
        tests=f"{TRITON} -k promised",
    ),
    Mutant(
        "attach_kv/uneven-layers-taken-for-even",
        file="lcc_kernels/attach_kv/addresses.py",
        old="if distance % itemsize or addresses != tuple(range(first, first + distance * len(addresses), distance)):",
        new="if distance % itemsize:",
        tests=f"{TESTS}/test_attach_kv_addresses.py",
    ),
    torch_path(
        "attach_kv/torch-slots-taken-for-consecutive",
        old="bool((slots.diff() == 1).all())",
        new="bool((slots.diff() >= 1).all())",
    ),
    torch_path(
        "attach_kv/torch-left-turned-twice",
        old="out[..., right].addcmul_(x[..., left], sin[:, right])",
        new="out[..., right].addcmul_(out[..., left], sin[:, right])",
    ),
    cuda("attach_kv/cuda-writes-the-slot-behind-the-last", old="slot >= a.capacity", new="slot > a.capacity"),
    cuda(
        "attach_kv/cuda-values-in-the-row-of-keys",
        old="write<Out>(values, layer, value_row + head * values.cache_head, a.copies, first, value[0]);",
        new="write<Out>(values, layer, key_row + head * values.cache_head, a.copies, first, value[0]);",
    ),
    cuda(
        "attach_kv/cuda-int32-memory-offsets",
        old="layer * side.memory_layer + head * side.memory_head +\n                        token * side.memory_token;",
        new="static_cast<int>(layer * side.memory_layer + head * side.memory_head + token * side.memory_token);",
    ),
    cuda("attach_kv/cuda-last-head-of-a-group", old="head < end; ++head", new="head < end - (begin > 0); ++head"),
    cuda("attach_kv/cuda-scales-of-the-first-group", old="/ f.token_run * f.token", new="/ f.token_run * 0"),
    launcher(
        "attach_kv/cuda-wide-accesses-of-misaligned-caches",
        old="whole = whole && aligned(side.caches[layer], kWidth * sizeof(Out));",
        new="",
    ),
    launcher(
        "attach_kv/cuda-a-block-too-few",
        old="(int64_t{a.tokens} * items_of<kWidth>(a) + kThreads - 1) / kThreads",
        new="(int64_t{a.tokens} * items_of<kWidth>(a)) / kThreads",
    ),
)
