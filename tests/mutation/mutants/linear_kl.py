"""Faults of the linear KL: its drivers, its Triton kernel and its CUDA kernel."""

from __future__ import annotations

from functools import partial

from tests.mutation.mutant import Mutant

TESTS = "tests/lcc_kernels/linear_kl"
TRITON = f"{TESTS}/test_linear_kl_triton.py"
VOCABULARIES = f"{TRITON} -k 'vocabularies and 9001'"
CONTRACT = f"{TESTS}/test_linear_kl_contract.py"
VALUES = f"{TESTS}/test_linear_kl_values.py"
WEIGHTS = f"{TESTS}/test_linear_kl_weights.py"
HOST = "tests/lcc_kernels/test_csrc.py -k row_kernel"
FAR = "tests/lcc_kernels/test_far_apart.py -k linear_kl_triton"

kernel = partial(Mutant, file="lcc_kernels/linear_kl/triton_kernel.py", interpreted=True)
driver = partial(Mutant, file="lcc_kernels/linear_kl/driver.py")
rows = partial(Mutant, file="csrc/linear_kl/rows.cuh", tests=HOST)
divergence = partial(Mutant, file="csrc/linear_kl/divergence.cuh", tests=HOST)
split = partial(
    Mutant,
    file="lcc_kernels/linear_kl/split_vocab.py",
    tests=f"{VALUES} -k 'tiles and dtype0'",
)

MUTANTS = (
    kernel(
        "linear_kl/nan-loss-becomes-0",
        old="tl.where(divergence < 0, 0.0, divergence * LN_2)",
        new="tl.maximum(divergence * LN_2, 0.0)",
        tests=f"{TRITON} -k nan_in",
    ),
    kernel(
        "linear_kl/loss-not-clamped",
        old="tl.where(divergence < 0, 0.0, divergence * LN_2)",
        new="divergence * LN_2",
        tests=f"{TRITON} -k rounding",
    ),
    driver(
        "linear_kl/every-chunk-takes-the-first-weights",
        old="None if row_weight is None else row_weight[span]",
        new="None if row_weight is None else row_weight[: len(hidden) // 2]",
        tests=WEIGHTS,
    ),
    driver(
        "linear_kl/dead-rows-keep-their-gradient-on-a-gpu",
        old="gradient.masked_fill_(dead[: len(gradient), None], 0.0)",
        new="gradient",
        tests=WEIGHTS,
    ),
    driver(
        "linear_kl/live-rows-in-the-wrong-places",
        old="loss.index_copy_(0, live, live_loss)",
        new="loss[: len(live)] = live_loss",
        tests=f"{CONTRACT} -k weight",
    ),
    kernel(
        "linear_kl/weights-with-unit-stride",
        old="row_weight.contiguous(),",
        new="row_weight,",
        tests=f"{TRITON} -k any_stride",
    ),
    kernel(
        "linear_kl/teacher-with-the-stride-of-the-student",
        old="teacher += row * teacher_stride",
        new="teacher += row * student_stride",
        tests=f"{TRITON} -k strided",
    ),
    kernel(
        "linear_kl/int32-row-offsets",
        old="row = tl.program_id(0).to(tl.int64)",
        new="row = tl.program_id(0)",
        tests=FAR,
    ),
    kernel(
        "linear_kl/tanh-by-its-series-to-0.6",
        old="tl.abs(x) < 0.2",
        new="tl.abs(x) < 0.6",
        tests=f"{TRITON} -k 'vocabularies and softcap'",
    ),
    kernel(
        "linear_kl/last-sweep-skips-a-tile",
        old="_columns(whole - 1 - index, LANES, WIDTH)",
        new="_columns(tl.maximum(whole - 1 - index, 1), LANES, WIDTH)",
        tests=VOCABULARIES,
    ),
    kernel(
        "linear_kl/cross-term-does-not-decay",
        old="cross = _weighed(decay, cross - lead_sum * moved)",
        new="cross = cross - lead_sum * moved",
        tests=VOCABULARIES,
    ),
    kernel(
        "linear_kl/peaks-move-and-the-cross-term-does-not",
        old="cross - lead_sum * moved)",
        new="cross)",
        tests=VOCABULARIES,
    ),
    kernel(
        "linear_kl/trailing-sum-does-not-decay",
        old="trail_sum * tl.exp2(trail_peak - new_trail_peak), cross",
        new="trail_sum, cross",
        tests=VOCABULARIES,
    ),
    kernel(
        "linear_kl/mixture-shares-exchanged",
        old="_log2_share(log_p - log_q, 1 - beta)), 1)",
        new="_log2_share(log_p - log_q, beta)), 1)",
        tests=f"{TRITON} -k 'vocabularies and jsd'",
    ),
    kernel(
        "linear_kl/slope-of-the-cap-forgotten",
        old='return gradient * (1 - s * s) if SHAPE == "capped" else gradient\n\n\n@triton.jit\ndef _divergence(',
        new="return gradient\n\n\n@triton.jit\ndef _divergence(",
        tests=f"{TRITON} -k 'vocabularies and softcap'",
    ),
    kernel(
        "linear_kl/beyond-the-vocabulary-is-0",
        old='tl.where(columns < vocab, x, float("-inf")) if MASKED',
        new="tl.where(columns < vocab, x, 0.0) if MASKED",
        tests=VOCABULARIES,
    ),
    kernel(
        "linear_kl/infinite-differences-are-weighed",
        old="return weight * tl.where(weight == 0, 0.0, value)",
        new="return weight * value",
        tests=f"{TRITON} -k 'banned or extreme'",
    ),
    kernel(
        "linear_kl/mse-mean-over-tiles",
        old="factor *= 2.0 / vocab",
        new="factor *= 2.0 / (whole * LANES * WIDTH + LANES * WIDTH)",
        tests=f"{TRITON} -k 'vocabularies and mse'",
    ),
    kernel(
        "linear_kl/a-nan-is-no-difference",
        old="tl.where(s == t, 0.0, (s - t) * scale)",
        new="tl.where((s - t) * (s - t) >= 0, (s - t) * scale, 0.0)",
        tests=f"{TRITON} -k 'nan_in'",
    ),
    driver(
        "linear_kl/wide-gradient-not-rounded-into-place",
        old="copy_(student_logits)",
        new="copy_(teacher_logits)",
        tests=f"{TESTS}/test_linear_kl_logit_dtype.py -k exact_logits",
    ),
    driver(
        "linear_kl/bias-forgotten-in-wide-logits",
        old="return out if bias is None else out.add_(bias)",
        new="return out",
        tests=f"{TESTS}/test_linear_kl_logit_dtype.py",
    ),
    split("linear_kl/split-normaliser-of-one-tile", old="(total * (peak - highest).exp_()).sum(0)", new="total.sum(0)"),
    split(
        "linear_kl/split-gradient-of-the-last-tile",
        old="total += torch.mm(logit_gradients, weight[part])",
        new="total = torch.mm(logit_gradients, weight[part]).to(total.dtype)",
    ),
    rows(
        "linear_kl/cuda-nan-loss-becomes-0",
        old="return loss < 0.0f ? 0.0f : loss * kLn2;",
        new="return fmaxf(loss * kLn2, 0.0f);",
    ),
    rows("linear_kl/cuda-loss-not-clamped", old="return loss < 0.0f ? 0.0f : loss * kLn2;", new="return loss * kLn2;"),
    rows(
        "linear_kl/cuda-last-sweep-skips-a-step",
        old="(vectors_end - 1 - first) / step * step; column",
        new="(vectors_end - 1 - first) / step * step - step; column",
    ),
    rows(
        "linear_kl/cuda-teacher-with-the-stride-of-the-student",
        old="row * a.teacher_stride",
        new="row * a.student_stride",
    ),
    rows(
        "linear_kl/cuda-int32-row-offsets",
        old="static_cast<T*>(a.student) + row * a.student_stride",
        new="static_cast<T*>(a.student) + row * static_cast<int>(a.student_stride)",
    ),
    rows(
        "linear_kl/cuda-blocks-of-a-cluster-left-out",
        old="for (int other = 1; other < cluster.size(); ++other) total",
        new="for (int other = 1; other + 1 < cluster.size(); ++other) total",
    ),
    rows(
        "linear_kl/cuda-a-leftover-column-twice",
        old="kWidth, vectors_end, vectors_end + thread, vocab}",
        new="kWidth, vectors_end, vectors_end + thread / 2, vocab}",
    ),
    divergence(
        "linear_kl/cuda-centre-of-jsd-in-nats",
        old="return weighed(p, log2_share((log_q - t_log_sum) - (log_p - s_log_sum), beta) - centre);",
        new="return weighed(p, log2_share((log_q - t_log_sum) - (log_p - s_log_sum), beta) - centre * kLn2);",
    ),
    divergence(
        "linear_kl/cuda-merge-does-not-raise-the-other",
        old="    other.raise_to(fmaxf(lead_peak, other.lead_peak), fmaxf(trail_peak, other.trail_peak));\n",
        new="",
    ),
    Mutant(
        "linear_kl/cuda-cluster-of-one-block",
        file="csrc/linear_kl/rows.cu",
        old="config.numAttrs = blocks > 1 ? 1 : 0;",
        new="config.numAttrs = 0;",
        tests="tests/lcc_kernels/test_csrc.py",
    ),
    Mutant(
        "linear_kl/cuda-wide-accesses-whatever-the-stride",
        file="csrc/linear_kl/rows.cu",
        old=" && stride * itemsize % kVectorBytes == 0;",
        new=";",
        tests="tests/lcc_kernels/test_csrc.py",
    ),
)
