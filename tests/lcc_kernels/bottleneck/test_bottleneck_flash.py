"""The flash_attn backend: its packing and merging on a stand-in for the kernels, itself where flash_attn runs."""

import sys
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import lcc_kernels as lk
from lcc_kernels import dispatch
from lcc_kernels.bottleneck import flash_path, reference
from tests.lcc_kernels.bottleneck import flash_stand_in, truth
from tests.lcc_kernels.bottleneck.layouts import AWKWARD, small_layouts

SCALE = 0.3
REASON = lk.available_backends("bottleneck_attention")["flash_attn"]


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", flash_stand_in)


def tensors(layout, batch=1):
    """q, k, v and an upstream gradient."""
    return [x.detach() for x in truth.tensors(layout, 4, 2, 8, torch.float64, batch)]


def run(backend, layout, q, k, v, grad):
    """[out, lse, dq, dk, dv]"""
    out, lse = backend.forward(q, k, v, layout.spans, SCALE)
    return [out, lse, *backend.backward(grad, q, k, v, out, lse, layout.spans, SCALE)]


def assert_same(layout, batch):
    inputs = tensors(layout, batch=batch)
    got, wanted = (run(backend, layout, *inputs) for backend in (flash_path, reference))
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11, check_dtype=layout.total > 0)
    assert all(x.is_contiguous() for x in got)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", AWKWARD)
def test_equals_the_reference(name, batch):
    assert_same(AWKWARD[name], batch)


@pytest.mark.usefixtures("stand_in")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=small_layouts)
def test_equals_the_reference_on_small_layouts(layout):
    assert_same(layout, batch=2)


@pytest.mark.usefixtures("stand_in")
def test_opcheck(monkeypatch):
    for direction, op in (("forward", "bottleneck_attention"), ("backward", "bottleneck_attention_backward")):
        monkeypatch.setitem(dispatch._OPS[op], "stand_in", dispatch.Backend(getattr(flash_path, direction)))
    layout = AWKWARD["packed"]
    leaves = [x.requires_grad_() for x in tensors(layout, batch=2)[:3]]
    torch.library.opcheck(
        torch.ops.lcc_kernels.bottleneck_attention.default, (*leaves, layout.spans, SCALE, "stand_in")
    )


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nothing_of_the_context_reaches_a_segment(poison):
    layout = AWKWARD["packed"]
    document = layout.documents[0]
    rows = slice(document.copy_rows.stop, document.stop)
    q, k, v, grad = tensors(layout)
    clean = [x[:, :, rows] for x in run(flash_path, layout, q, k, v, grad)]
    k[:, :, : document.buffer_rows.start] = v[:, :, : document.buffer_rows.start] = poison
    assert all(map(torch.equal, clean, (x[:, :, rows] for x in run(flash_path, layout, q, k, v, grad))))


@pytest.mark.usefixtures("stand_in")
def test_thousands_of_segments_are_two_calls(monkeypatch):
    calls = []
    kernel = flash_stand_in._flash_attn_varlen_forward
    monkeypatch.setattr(
        flash_stand_in, "_flash_attn_varlen_forward", lambda *x, **options: calls.append(1) or kernel(*x, **options)
    )
    layout = lk.BottleneckLayout(1, 3, 2, [1, 2] * 500)
    flash_path.forward(*tensors(layout)[:3], layout.spans, SCALE)
    assert len(calls) == 2


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", AWKWARD)
def test_kernels_are_as_accurate_as_torch(name, dtype):
    layout = AWKWARD[name]
    truth.assert_near_dense(layout, "flash_attn", truth.tensors(layout, dtype=dtype))


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    reason = lk.available_backends("bottleneck_attention")["flash_attn"]
    assert "flash_attn does not import" in reason
    assert "lcc-kernels[flash]" in reason


@pytest.mark.usefixtures("stand_in")
def test_refuses_what_it_cannot_run():
    layout = lk.BottleneckLayout(0, 2, 1)
    q, k, v, _ = tensors(layout)
    with pytest.raises(lk.BackendUnavailableError, match=r"no CUDA device|must be CUDA tensors"):
        lk.bottleneck_attention(q, k, v, layout, backend="flash_attn")
