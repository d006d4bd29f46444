"""Attention against float64 at sizes of many tiles, and the other ops' cases of correctness."""

from __future__ import annotations

from functools import partial

import torch

import lcc_kernels as lk
from benchmarks.common.results_file import Row

from . import correctness_rows
from .case import TOLERANCES, Case, Scale, backends, relative_error, short, verdict

HEADS, KV_HEADS = 8, 2
HEAD_DIMS = (64, 128, 256)


def cases(scale: Scale) -> list[Case]:
    """NaN first, whose loss would be silent; then the kernels in the order of what hangs on them."""
    return [*correctness_rows.nan_cases(scale), *_bottleneck_cases(scale), *correctness_rows.cases(scale)]


def layouts(scale: Scale) -> dict[str, lk.BottleneckLayout]:
    """Three rows of many tiles: a training step's, one of uneven segments, and packed documents without a prefix."""
    row = lk.BottleneckLayout
    if scale.tiny:
        return {
            "step": row(3, 24, 5, (17, 4, 4)),
            "uneven": row(2, 9, 3, (1, 0, 19, 2)),
            "packed": row.pack([row(0, 11, 4, (7, 3), keep_prefix=False), row(2, 7, 2, (5,))]),
        }
    return {
        "step": row(5, 1024, 64, (1024, *[45] * 32)),
        "uneven": row(37, 700, 129, (1, 3, 1500, 0, 64, 257, 128, 2)),
        "packed": row.pack([row(0, 500, 33, (300, 77), keep_prefix=False), row(5, 613, 40, (613, *[19] * 20))]),
    }


def _bottleneck_cases(scale: Scale) -> list[Case]:
    return [
        Case(
            f"bottleneck {backend} {name} hd{head_dim} {short(dtype)}",
            partial(_bottleneck, scale, layout, head_dim, dtype, backend),
        )
        for backend in backends("bottleneck_attention", scale)
        for head_dim in HEAD_DIMS
        for dtype in scale.dtypes
        for name, layout in layouts(scale).items()
    ]


def _bottleneck(scale: Scale, layout: lk.BottleneckLayout, head_dim: int, dtype: torch.dtype, backend: str) -> Row:
    """Output and gradients; q, k, v and the upstream gradient have strides of their own."""
    torch.manual_seed(0)
    make = partial(torch.randn, device=scale.device, dtype=dtype)
    q = make(1, layout.total, HEADS, head_dim).transpose(1, 2)
    k = make(1, KV_HEADS, layout.total, head_dim)
    v = make(1, KV_HEADS, layout.total + 3, head_dim + 8)[:, :, 3:, 8:]
    above = make(HEADS, layout.total, 1, head_dim).permute(2, 0, 1, 3)
    got = _with_gradients(q, k, v, above, layout, backend)
    wanted = _with_gradients(q.double(), k.double(), v.double(), above.double(), layout, "reference")
    errors = {name: relative_error(got[name], wanted[name]) for name in wanted}
    return verdict(errors, TOLERANCES[dtype])


def _with_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, above: torch.Tensor, layout: lk.BottleneckLayout, backend: str
) -> dict[str, torch.Tensor]:
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = lk.bottleneck_attention(*inputs, layout, backend=backend)
    assert isinstance(out, torch.Tensor)
    return dict(zip(("out", "q", "k", "v"), (out.detach(), *torch.autograd.grad(out, inputs, above)), strict=True))
