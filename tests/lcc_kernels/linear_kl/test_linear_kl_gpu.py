"""All backends on a GPU, where there is one."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk

from .kl_cases import VARIANTS, check_linear, check_logits, check_wide_logits, extreme_logits, make_head

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BACKENDS = ("torch", "triton", "cuda")


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = lk.available_backends("linear_kl")[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


def on_gpu(student, *rest):
    moved = [None if tensor is None else tensor.detach().cuda() for tensor in (student, *rest)]
    return moved[0].requires_grad_(), *moved[1:]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [33, 5000, 128257])
def test_linear_kl(backend, variant, dtype, vocab):
    check_linear(*on_gpu(*make_head(9, 64, vocab, dtype)), variant, backend=backend)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [33, 128257])
def test_logits_in_float32(backend, variant, dtype, vocab):
    for bias in (True, False):
        check_wide_logits(*on_gpu(*make_head(9, 64, vocab, dtype, bias=bias)), variant, backend=backend)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("vocab", [1, 4097, 65536])
def test_kl_from_logits(backend, variant, vocab):
    variant = {**variant, "vocab_size": min(variant.get("vocab_size", vocab), vocab)}
    student, teacher = (3 * torch.randn(5, vocab) for _ in range(2))
    check_logits(*on_gpu(student, teacher), variant, backend=backend)


@pytest.mark.parametrize("variant", ["forward", "reverse", "jsd", "mse"])
def test_extreme_logits(backend, variant):
    check_logits(*on_gpu(*extreme_logits(40000)), VARIANTS[variant], backend=backend)


def test_nothing_waits_for_the_device(backend):
    student, *rest = on_gpu(*make_head(64, 64, 5000, torch.bfloat16))
    weights = (torch.arange(64) % 3).float().cuda()
    options = {"row_weight": weights, "backend": backend, "chunk_bytes": 2**20}
    expected = torch.autograd.grad(lk.linear_kl(student, *rest, **options), student)[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = torch.autograd.grad(lk.linear_kl(student, *rest, **options), student)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual, expected)
    assert (actual[weights == 0] == 0).all()
