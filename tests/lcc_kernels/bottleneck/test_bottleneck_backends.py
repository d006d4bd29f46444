"""Every backend against dense attention in float64: values, gradients and isolation."""

import pytest
import torch
from hypothesis import given, settings
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk
from tests.lcc_kernels.bottleneck.layouts import AWKWARD, role_mask, small_layouts
from tests.support.float64 import assert_as_accurate

NAMES = [name for name, reason in lk.available_backends("bottleneck_attention").items() if reason is None]
BACKENDS = [name for name in NAMES if name != "flash_attn"]  # half precision alone: test_bottleneck_flash
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SCALE = 0.3


def tensors(layout, heads=2, kv_heads=1, head_dim=32, dtype=torch.float32, batch=1):
    """q, k, v and an upstream gradient, all different from one another and not contiguous."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, layout.total, h, head_dim) for h in (heads, kv_heads, kv_heads, heads)]
    made = (torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes)
    return [tensor.transpose(1, 2).requires_grad_() for tensor in made]


def run(attend, q, k, v, grad):
    """[out, lse, dq, dk, dv]"""
    out, lse = attend(q, k, v)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def dense(layout):
    """Same-dtype torch, as a user would write it."""

    def attend(q, k, v):
        mask = layout.dense_mask(q.device)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True)
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * SCALE
        return out, scores.masked_fill(~mask, -torch.inf).logsumexp(-1)

    return attend


def ours(layout, backend):
    return lambda q, k, v: lk.bottleneck_attention(q, k, v, layout, SCALE, return_lse=True, backend=backend)


def supported(backend, dtype):
    interpreted = backend == "triton" and DEVICE == "cpu"
    return not (backend == "triton" and dtype == torch.float64) and not (interpreted and dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", AWKWARD)
def test_as_accurate_as_torch(name, backend, dtype):
    if not supported(backend, dtype):
        pytest.skip("not a dtype of this backend here")
    layout = AWKWARD[name]
    inputs = tensors(layout, dtype=dtype)
    got = run(ours(layout, backend), *inputs)
    plain = run(dense(layout), *inputs)
    truth = run(dense(layout), *(x.detach().double().requires_grad_() for x in inputs))
    assert got[1].dtype == torch.promote_types(dtype, torch.float32)
    for what, mine, same, true in zip(("out", "lse", "dq", "dk", "dv"), got, plain, truth, strict=True):
        if layout.total:
            assert_as_accurate(mine, same, true, FLOOR[dtype], what)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", [(1, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("head_dim", [32, 40, 96])
def test_heads_and_dims(backend, heads, head_dim):
    layout = lk.BottleneckLayout(2, 9, 5, (7, 3))
    inputs = tensors(layout, *heads, head_dim, batch=2)
    truth = run(dense(layout), *(x.detach().double().requires_grad_() for x in inputs))
    plain = run(dense(layout), *inputs)
    for mine, same, true in zip(run(ours(layout, backend), *inputs), plain, truth, strict=True):
        assert_as_accurate(mine, same, true, FLOOR[torch.float32])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(layout=small_layouts)
def test_every_pair_of_small_layouts(backend, layout):
    """With equal scores and one-hot values each weight can be read off; with one-hot gradients, each one of dv."""
    one_hot = torch.eye(32, device=DEVICE)[: layout.total].expand(1, 1, -1, -1)
    q, k = (torch.zeros(1, 1, layout.total, 32, device=DEVICE) for _ in range(2))
    v = one_hot.clone().requires_grad_()
    out = lk.bottleneck_attention(q, k, v, layout, backend=backend)
    (grad_v,) = torch.autograd.grad(out, v, one_hot)
    wanted = role_mask(layout)
    assert torch.equal(out[0, 0, :, : layout.total].cpu() > 0, wanted)
    assert torch.equal(grad_v[0, 0, :, : layout.total].cpu().mT > 0, wanted)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nothing_of_the_context_reaches_a_segment(backend, poison):
    """K and V of P and C, of P's row and of another document turn to poison: segment rows do not change by a bit."""
    layout = lk.BottleneckLayout.pack([lk.BottleneckLayout(2, 30, 5, (9, 20, 1)), lk.BottleneckLayout(1, 6, 2, (3,))])
    document = layout.documents[0]
    rows = slice(document.copy_rows.stop, document.stop)
    hidden = [slice(0, document.buffer_rows.start), slice(document.stop, layout.total)]
    q, k, v, grad = (x.detach() for x in tensors(layout))
    bad_k, bad_v = k.clone(), v.clone()
    for where in hidden:
        bad_k[:, :, where] = bad_v[:, :, where] = poison

    def segment_part(keys, values):
        q_leaf, keys, values = (x.clone().requires_grad_() for x in (q, keys, values))
        out = lk.bottleneck_attention(q_leaf, keys, values, layout, backend=backend)[:, :, rows]
        grads = torch.autograd.grad(out, (q_leaf, keys, values), grad[:, :, rows])
        return [out, *(x[:, :, rows] for x in grads)]

    for clean, poisoned in zip(segment_part(k, v), segment_part(bad_k, bad_v), strict=True):
        assert clean.isfinite().all()
        assert torch.equal(clean, poisoned)
