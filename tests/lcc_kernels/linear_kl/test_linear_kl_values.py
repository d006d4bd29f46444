"""Losses and gradients of the reference and torch backends against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lcc_kernels as lk

from .kl_cases import (
    VARIANTS,
    banned_logits,
    check_banned,
    check_linear,
    check_logits,
    check_nan_in_nan_out,
    extreme_logits,
    loss_and_gradient,
    make_head,
)

BACKENDS = ("reference", "torch")
# One chunk; chunks of rows; tiles of the vocabulary.
CHUNKS = {"whole": None, "rows": 2000, "tiles": 200}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_bytes", CHUNKS.values(), ids=CHUNKS)
def test_linear_kl(variant, dtype, chunk_bytes):
    check_linear(*make_head(7, 16, 33, dtype), variant, backend="torch", chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_from_logits(variant, backend):
    student, teacher = (3 * torch.randn(5, 41) for _ in range(2))
    check_logits(student.requires_grad_(), teacher, variant, backend=backend)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_reference(variant):
    check_linear(*make_head(7, 16, 33), variant, backend="reference")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 9),
    vocab=st.integers(1, 70),
    chunk_bytes=st.integers(1, 5000),
    variant=st.sampled_from([VARIANTS[name] for name in ("forward", "softcap-reverse", "softcap-jsd", "mse")]),
)
def test_chunking_changes_nothing(rows, vocab, chunk_bytes, variant):
    student, teacher, weight, bias = make_head(rows, 4, vocab, torch.float64)
    results = [
        loss_and_gradient(
            lk.linear_kl(student, teacher, weight, bias, reduction="none", chunk_bytes=chunk, **variant), student
        )
        for chunk in (None, chunk_bytes)
    ]
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(variant, backend):
    student, teacher = extreme_logits()
    options = VARIANTS[variant]
    loss, gradient = loss_and_gradient(
        lk.kl_from_logits(student, teacher, reduction="none", backend=backend, **options), student
    )
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    check_logits(student, teacher, options, backend=backend)


@pytest.mark.parametrize("chunk_bytes", CHUNKS.values(), ids=CHUNKS)
def test_extreme_logits_behind_a_head(chunk_bytes):
    student_logits, teacher_logits = extreme_logits()
    rows = len(student_logits)
    weight = torch.cat((student_logits, teacher_logits)).detach().t()
    student, teacher = torch.eye(2 * rows)[:rows].requires_grad_(), torch.eye(2 * rows)[rows:]
    check_linear(student, teacher, weight, None, {}, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse", "softcap"])
@pytest.mark.parametrize("chunk_bytes", CHUNKS.values(), ids=CHUNKS)
def test_identical_teacher_and_student(variant, chunk_bytes):
    student, _, weight, bias = make_head(6, 16, 300)
    rows = lk.linear_kl(
        student, student.detach(), weight, bias, reduction="none", chunk_bytes=chunk_bytes, **VARIANTS[variant]
    )
    loss, gradient = loss_and_gradient(rows, student)
    assert (loss >= 0).all()
    assert loss.max() <= 1e-6
    assert gradient.abs().max() <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("rows", "vocab"), [(0, 33), (1, 33), (3, 1), (2, 1025)])
def test_edge_shapes(variant, rows, vocab):
    variant = {**variant, "vocab_size": min(variant.get("vocab_size", vocab), vocab)}
    student, teacher, weight, bias = make_head(rows, 8, vocab)
    for reduction in ("none", "sum", "mean"):
        loss = lk.linear_kl(student, teacher, weight, bias, reduction=reduction, **variant)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.isfinite().all()
        assert (loss >= 0).all()
        assert gradient.isfinite().all()
        assert gradient.shape == student.shape
    if rows:
        check_linear(student, teacher, weight, bias, variant)


def test_a_real_vocabulary():
    check_linear(*make_head(3, 8, 128257), {})


def test_non_contiguous_inputs():
    student, teacher, weight, bias = make_head(14, 16, 66)
    student = student.detach()[::2, ::2].requires_grad_()
    check_linear(student, teacher[::2, 1::2], weight.t()[::2, ::2].t(), bias[::2], {})
    student, teacher = torch.randn(41, 5).t().requires_grad_(), torch.randn(10, 41)[::2]
    check_logits(student, teacher, {})


@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_nan_out(variant, backend):
    check_nan_in_nan_out(backend=backend, **VARIANTS[variant])


@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_banned_tokens(variant, backend):
    student, teacher = banned_logits()
    rows = lk.kl_from_logits(student, teacher, reduction="none", backend=backend, **VARIANTS[variant])
    check_banned(variant, loss_and_gradient(rows, student), 70)


@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("chunk_bytes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("banned", [slice(0, 17), slice(20, 33)])
def test_tokens_banned_by_the_bias(variant, chunk_bytes, banned):
    student, teacher, weight, bias = make_head(7, 16, 33, torch.float64)
    kept = torch.ones(33, dtype=torch.bool)
    kept[banned], bias[banned] = False, -torch.inf
    rows = lk.linear_kl(student, teacher, weight, bias, reduction="none", chunk_bytes=chunk_bytes, **VARIANTS[variant])
    expected = lk.linear_kl(student, teacher, weight[kept], bias[kept], reduction="none", **VARIANTS[variant])
    if variant == "mse":
        expected *= kept.double().mean()
    torch.testing.assert_close(loss_and_gradient(rows, student), loss_and_gradient(expected, student))
