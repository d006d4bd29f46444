"""The Triton kernel's numbers in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.dispatch import interpreting
from lcc_kernels.linear_kl import driver
from lcc_kernels.linear_kl.options import KLOptions

from .kl_cases import (
    VARIANTS,
    banned_logits,
    check_banned,
    check_linear,
    check_logits,
    check_nan_in_nan_out,
    check_wide_logits,
    extreme_logits,
    loss_and_gradient,
    make_head,
)

triton = pytest.importorskip("triton")
interpreted = pytest.mark.skipif(not interpreting(), reason="runs in a process of its own with TRITON_INTERPRET=1")


@interpreted
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_bytes", [None, 2000])
def test_linear_kl(variant, dtype, chunk_bytes):
    check_linear(*make_head(5, 16, 33, dtype), variant, backend="triton", chunk_bytes=chunk_bytes)


@interpreted
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("vocab", [1, 128, 4096, 4097, 9001])
def test_vocabularies(variant, vocab):
    variant = {**variant, "vocab_size": min(variant.get("vocab_size", vocab), vocab)}
    student, teacher = (3 * torch.randn(2, vocab) for _ in range(2))
    check_logits(student.requires_grad_(), teacher, variant, backend="triton")


@interpreted
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_float32(variant, dtype):
    check_wide_logits(*make_head(5, 16, 33, dtype), variant, backend="triton", chunk_bytes=2000)


@interpreted
def test_a_real_vocabulary():
    check_linear(*make_head(2, 8, 128257), {}, backend="triton")


@interpreted
@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("vocab", [257, 4200])
def test_extreme_logits(variant, vocab):
    student, teacher = extreme_logits(vocab)
    options = VARIANTS[variant]
    loss, gradient = loss_and_gradient(
        lk.kl_from_logits(student, teacher, reduction="none", backend="triton", **options), student
    )
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    check_logits(student, teacher, options, backend="triton")


@interpreted
@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse", "softcap"])
def test_identical_teacher_and_student(variant):
    student, _, weight, bias = make_head(4, 16, 5000)
    rows = lk.linear_kl(
        student, student.detach(), weight, bias, reduction="none", backend="triton", **VARIANTS[variant]
    )
    loss, gradient = loss_and_gradient(rows, student)
    assert (loss >= 0).all()
    assert loss.max() <= 1e-6
    assert gradient.abs().max() <= 1e-5


@interpreted
@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd"])
def test_rounding_makes_no_loss_negative(variant):
    """Of logits that differ by a rounding error half the sums would be below 0."""
    generator = torch.Generator().manual_seed(0)
    student, noise = (torch.randn(32, 300, generator=generator) for _ in range(2))
    loss = lk.kl_from_logits(student, student + 1e-6 * noise, reduction="none", backend="triton", **VARIANTS[variant])
    assert (loss >= 0).all()
    assert loss.max() <= 1e-6


@interpreted
def test_no_rows_no_gradient_and_strided_logits():
    assert lk.kl_from_logits(torch.zeros(0, 5), torch.zeros(0, 5), backend="triton") == 0
    student, teacher = torch.randn(41, 5).t().requires_grad_(), torch.randn(10, 41)[::2]
    check_logits(student, teacher, {}, backend="triton")
    with torch.no_grad():
        before = student.clone()
        lk.kl_from_logits(student, teacher, backend="triton")
        assert torch.equal(before, student)


@interpreted
def test_rows_of_weight_zero_are_left_alone():
    from lcc_kernels.linear_kl.triton_kernel import divergence_

    student, teacher = torch.randn(3, 300), torch.randn(3, 300)
    student[1], before = torch.nan, student.clone()
    weights = torch.tensor([1.0, 0.0, 2.0])
    for options in (KLOptions(), KLOptions(loss="mse")):
        logits = before.clone()
        logits[1] = torch.nan
        loss = divergence_(logits, teacher, weights, options, True)
        expected = driver.live_rows(
            lambda s, t, w, options=options: driver.kl_rows(divergence_, s, t, w, options, True),
            before,
            teacher,
            weights,
            True,
        )
        assert logits[1].isnan().all()
        torch.testing.assert_close(logits[::2], expected[1][::2])
        torch.testing.assert_close(loss[::2], expected[0][::2])
        assert (expected[1][1] == 0).all()


@interpreted
@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("vocab", [70, 4200])
def test_nan_in_nan_out(variant, vocab):
    check_nan_in_nan_out(vocab, backend="triton", **VARIANTS[variant])


@interpreted
@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
@pytest.mark.parametrize("vocab", [70, 9001])
def test_banned_tokens(variant, vocab):
    student, teacher = banned_logits(vocab)
    rows = lk.kl_from_logits(student, teacher, reduction="none", backend="triton", **VARIANTS[variant])
    check_banned(variant, loss_and_gradient(rows, student), vocab)


@interpreted
@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_scale_of_zero_makes_all_logits_equal(loss):
    student, teacher = torch.randn(2, 70, requires_grad=True), torch.randn(2, 70)
    rows = lk.kl_from_logits(student, teacher, logit_scale=0.0, loss=loss, reduction="none", backend="triton")
    torch.testing.assert_close(loss_and_gradient(rows, student), (torch.zeros(2), torch.zeros(2, 70)))


@interpreted
@pytest.mark.parametrize("variant", ["forward", "mse"])
@pytest.mark.parametrize("weights", [torch.tensor([[2.0, 0.0], [0.0, 3.0]] * 2)[:, 0], torch.eye(4)[0, 0].expand(4)])
def test_weights_of_any_stride(variant, weights):
    from lcc_kernels.linear_kl.triton_kernel import divergence_

    student, teacher = torch.randn(4, 70), torch.randn(4, 70)
    options, ours = KLOptions(loss="mse" if variant == "mse" else "kl"), student.clone()
    loss = divergence_(ours, teacher, weights, options, True)
    expected = student.clone()
    same = divergence_(expected, teacher, None, options, True)
    live = weights != 0
    torch.testing.assert_close(loss[live], same[live])
    torch.testing.assert_close(ours[live], expected[live])
    assert torch.equal(ours[~live], student[~live])


@interpreted
@pytest.mark.parametrize("call", [{"chunk_bytes": 8}, {"dtype": torch.float64}])
def test_refusals(call):
    dtype = call.pop("dtype", torch.float32)
    with pytest.raises(lk.BackendUnavailableError, match="backend 'torch'"):
        lk.linear_kl(*make_head(2, 4, 9, dtype), backend="triton", **call)
