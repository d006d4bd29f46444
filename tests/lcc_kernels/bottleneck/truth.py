"""Dense attention as a user would write it, the tensors that it is compared on, and how near a backend must come."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk
from tests.support.float64 import assert_as_accurate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = 0.3
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NORM_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 3e-4, torch.bfloat16: 2e-3}
WHAT = ("out", "lse", "dq", "dk", "dv")


def tensors(layout, heads=2, kv_heads=1, head_dim=32, dtype=torch.float32, batch=1):
    """q, k, v (leaves) and an upstream gradient (batch, heads, total, head_dim), no two with a stride in common."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, h, layout.total, head_dim) for h in (heads, kv_heads, kv_heads, heads)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for shape in shapes]
    return [apart(x, number).requires_grad_(number < 3) for number, x in enumerate(values)]


def apart(values, number):
    """``values`` (batch, heads, rows, columns) amid NaN, with strides that are those of ``number`` alone."""
    batch, heads, rows, columns = values.shape
    memory = values.new_full((batch, rows + number, heads + number, columns + 8 * number), torch.nan)
    return memory[:, :rows, :heads, :columns].transpose(1, 2).copy_(values)


def run(attend, q, k, v, grad):
    """[out, lse, dq, dk, dv]"""
    out, lse = attend(q, k, v)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def dense(layout):
    """Same-dtype torch."""

    def attend(q, k, v):
        mask = layout.dense_mask(q.device)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=SCALE, enable_gqa=True)
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * SCALE
        return out, scores.masked_fill(~mask, -torch.inf).logsumexp(-1)

    return attend


def ours(layout, backend):
    return lambda q, k, v: lk.bottleneck_attention(q, k, v, layout, SCALE, return_lse=True, backend=backend)


def assert_near_dense(layout, backend, inputs):
    """No number, and not the whole in its norm, is off by more than twice what dense attention in that dtype is."""
    got = run(ours(layout, backend), *inputs)
    plain = run(dense(layout), *inputs)
    truth = run(dense(layout), *(x.detach().double().requires_grad_(x.requires_grad) for x in inputs))
    dtype = inputs[0].dtype
    assert got[1].dtype == torch.promote_types(dtype, torch.float32)
    for what, mine, same, true in zip(WHAT, got, plain, truth, strict=True):
        if layout.total:
            assert_as_accurate(mine, same, true, FLOOR[dtype], what)
            error, allowed = ((x.double() - true).norm() / true.norm() for x in (mine, same))
            assert error <= 2 * allowed + NORM_FLOOR[dtype], f"{what}: off by {error:.2g} of its norm"
