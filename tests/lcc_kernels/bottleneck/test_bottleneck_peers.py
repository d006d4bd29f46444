"""The benchmark's peers compute the same attention; those for GPUs alone are tried on torch's meta device."""

import re

import pytest
import torch

import lcc_kernels as lk
from benchmarks.kernels import merged_calls
from benchmarks.kernels.bottleneck_cases import AttentionCase
from benchmarks.kernels.bottleneck_peers import PEERS, interval_ends
from tests.lcc_kernels.bottleneck.layouts import AWKWARD

NAMES = [name for name in AWKWARD if name != "empty"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
aten = torch.ops.aten


def case_of(layout, dtype=torch.float64):
    return AttentionCase("small", layout, 4, 2, 8, dtype)


def cpu_forward(q, k, v, causal, scale):
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, lse, None


def cpu_backward(grad, q, k, v, out, lse, state, causal, scale):
    wide = [x.repeat_interleave(2, 1) for x in (k, v)]
    grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, *wide, out, lse, 0.0, causal, scale=scale
    )
    return grads[0], *(x.unflatten(1, (-1, 2)).sum(2) for x in grads[1:])


def gradients(attend, tensors):
    out = attend(*tensors)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


@pytest.mark.parametrize("name", NAMES)
def test_merged_calls_equal_the_reference(name):
    case = case_of(AWKWARD[name])
    tensors = case.tensors("cpu")
    kernel, plan = merged_calls.Kernel(cpu_forward, cpu_backward), merged_calls.calls(case.layout)
    got = gradients(lambda *x: merged_calls.attend(*x, kernel, plan, case.head_dim**-0.5), tensors)
    wanted = gradients(lambda *x: lk.bottleneck_attention(*x, case.layout, backend="reference"), tensors)
    torch.testing.assert_close(got, wanted)


def test_a_training_row_takes_a_handful_of_calls():
    assert len(merged_calls.calls(lk.BottleneckLayout(5, 512, 32, (512, *[16] * 32)))) == 5


@pytest.mark.parametrize("kernel", [merged_calls.FLASH, merged_calls.CUDNN], ids=["flash", "cudnn"])
def test_gpu_kernels_take_the_arguments(kernel):
    case = case_of(AWKWARD["packed"], torch.bfloat16)
    tensors = [x.detach().to("meta").requires_grad_() for x in case.tensors("cpu")]
    got = gradients(lambda *x: merged_calls.attend(*x, kernel, merged_calls.calls(case.layout), 0.3), tensors)
    assert [x.shape for x in got] == [tensors[0].shape, *(x.shape for x in tensors)]


@pytest.mark.parametrize("name", NAMES)
def test_interval_ends_are_the_mask(name):
    case = case_of(AWKWARD[name])
    (ends,) = interval_ends(case, "cpu")
    keys = torch.arange(case.layout.total)
    zero, first, stop, start, end = ends[:, :, None]
    seen = (keys < zero) | (first <= keys) & (keys < stop) | (start <= keys) & (keys < end)
    assert torch.equal(seen, case.layout.dense_mask())
    assert (ends.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_runs_or_says_why_not(peer):
    dtype, error = (torch.float16, 3e-2) if DEVICE == "cuda" else (torch.float32, 1e-4)
    case = AttentionCase("small", AWKWARD["packed"], 4, 2, 64, dtype)
    reason = PEERS[peer].refuses(case, DEVICE)
    if reason is not None:
        pytest.skip(reason)
    tensors = case.tensors(DEVICE)
    got = gradients(PEERS[peer].prepare(case, DEVICE), tensors)
    wanted = gradients(lambda *x: lk.bottleneck_attention(*x, case.layout, backend="reference"), tensors)
    torch.testing.assert_close(got, wanted, rtol=error, atol=error)


@pytest.mark.parametrize(
    ("peer", "reason"),
    [("flash_calls_merged", "GPUs"), ("cudnn_calls_merged", "GPUs"), ("cudnn_flex_attention", "cudnn|GPUs")],
)
def test_refusals_have_reasons(peer, reason):
    assert re.search(reason, PEERS[peer].refuses(case_of(AWKWARD["packed"]), "cpu"))
