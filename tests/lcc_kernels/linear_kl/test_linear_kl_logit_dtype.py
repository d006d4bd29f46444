"""Logits in float32 behind a head of lower precision."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.linear_kl import driver, torch_path
from lcc_kernels.linear_kl.options import KLOptions

from .kl_cases import VARIANTS, check_wide_logits, close_heads, make_head
from .test_linear_kl_contract import Recorder

BACKENDS = ("reference", "torch")
# One chunk; chunks of rows; tiles of the vocabulary.
CHUNKS = {"whole": None, "rows": 2000, "tiles": 200}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_bytes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_is_that_of_exact_logits(variant, dtype, chunk_bytes, backend):
    check_wide_logits(*make_head(7, 16, 33, dtype), variant, chunk_bytes=chunk_bytes, backend=backend)


@pytest.mark.parametrize("bias", [True, False])
def test_a_weight_that_is_cast_in_many_tiles(bias, monkeypatch):
    monkeypatch.setattr(driver, "CAST_ELEMENTS", 7 * 16)
    check_wide_logits(*make_head(5, 16, 40, torch.bfloat16, bias=bias), {})


def test_strided_inputs():
    student, teacher, weight, bias = make_head(14, 16, 66, torch.bfloat16)
    student = student.detach()[::2, ::2].requires_grad_()
    check_wide_logits(student, teacher[::2, 1::2], weight.t()[::2, ::2].t(), bias[::2], {})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kl_of_close_distributions(backend):
    head = close_heads(rows=64)
    truth = lk.linear_kl(*(x.double() for x in head))
    assert 1e-4 < truth < 1e-3
    rounded, exact = (lk.linear_kl(*head, backend=backend, logit_dtype=dtype) for dtype in (None, torch.float32))
    torch.testing.assert_close(exact.double(), truth, rtol=1e-3, atol=0)
    assert rounded > 1.3 * truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_of_such_a_precision_stay_as_they_are(dtype):
    head = make_head(5, 8, 33, dtype)
    for chunk_bytes in (None, 200):
        losses = [lk.linear_kl(*head, chunk_bytes=chunk_bytes, logit_dtype=wide) for wide in (None, torch.float32)]
        assert torch.equal(*losses)


@pytest.mark.parametrize("logit_dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_no_other_dtype_is_taken(logit_dtype):
    with pytest.raises(ValueError, match=r"logit_dtype must be None or torch\.float32"):
        lk.linear_kl(*make_head(3, 8, 33), logit_dtype=logit_dtype)


@pytest.mark.parametrize("with_grad", [True, False])
def test_opcheck(with_grad):
    student, teacher, weight, bias = make_head(3, 4, 9, torch.bfloat16)
    student.requires_grad_(with_grad)
    options = KLOptions(logit_dtype=torch.float32)
    assert KLOptions(*options.arguments) == options
    arguments = student, teacher, weight, bias, torch.tensor([1.0, 0.0, 2.0]), "torch", with_grad, *options.arguments
    torch.library.opcheck(torch.ops.lcc_kernels.linear_kl_rows.default, arguments)


@pytest.mark.parametrize("chunk_bytes", [2**15, 2**12])
def test_float32_logits_keep_to_the_bytes_of_a_chunk(chunk_bytes):
    head = [tensor.detach().to("meta") for tensor in make_head(128, 8, 1000, torch.bfloat16)]
    with Recorder() as recorder:
        torch_path.linear_kl_rows(*head, None, KLOptions(chunk_bytes=chunk_bytes, logit_dtype=torch.float32), True)
    assert recorder.largest * 4 <= chunk_bytes


def test_a_row_takes_twice_the_bytes():
    head = [tensor.detach().to("meta") for tensor in make_head(8, 4, 1000, torch.bfloat16)]
    largest = []
    for options in (KLOptions(), KLOptions(logit_dtype=torch.float32)):
        with Recorder() as recorder:
            driver.linear_kl_rows(_no_kernel, *head, None, options, True)
        largest.append(recorder.largest_bytes)
    assert largest == [2 * 8 * 1000 * 2, 2 * 8 * 1000 * 4]


def _no_kernel(student, *_):
    return student.new_empty(len(student), dtype=torch.float32)
