"""Numbers that lie 2 ** 31 places apart: addresses have 64 bits (in Triton's interpreter; for CUDA see test_csrc)."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.bottleneck import reference as bottleneck_reference
from lcc_kernels.dispatch import interpreting
from lcc_kernels.linear_kl.options import KLOptions
from lcc_kernels.linear_kl.torch_path import divergence_ as torch_divergence_
from tests.support.far_apart import far_apart

triton = pytest.importorskip("triton")
tl = triton.language
from lcc_kernels.bottleneck.triton_kernel import _store_rows  # noqa: E402

interpreted = pytest.mark.skipif(not interpreting(), reason="a GPU would need memory for all that lies in between")
normal = partial(torch.randn, generator=torch.Generator().manual_seed(0))
close = partial(torch.testing.assert_close, rtol=2e-3, atol=2e-3)


def half(*shape):
    return normal(shape).half()


@interpreted
@pytest.mark.parametrize(
    ("dim", "shape"), [(0, (3, 1, 6)), (1, (1, 3, 6)), (2, (1, 1, 33))], ids=["batch", "heads", "rows"]
)
def test_bottleneck_triton(dim, shape):
    """The last of 33 rows begins a tile."""
    from lcc_kernels.bottleneck import triton_kernel

    layout = lk.BottleneckLayout(0, 30, 3) if dim == 2 else lk.BottleneckLayout(1, 2, 1, (1,))
    assert layout.total == shape[2]
    grad, *inputs = (half(*shape, 16) for _ in range(4))
    outputs = bottleneck_reference.forward(*inputs, layout.spans, 0.3)
    wanted = [*outputs, *bottleneck_reference.backward(grad, *inputs, *outputs, layout.spans, 0.3)]
    grad, *inputs = (far_apart(x, dim) for x in (grad, *inputs))
    outputs = triton_kernel.forward(*inputs, layout.spans, 0.3)
    close([*outputs, *triton_kernel.backward(grad, *inputs, *outputs, layout.spans, 0.3)], wanted, check_dtype=False)


@triton.jit
def _store_ones(pointer, row_stride):
    first = tl.program_id(0)
    _store_rows(pointer, tl.full([16, 16], 1.0, tl.float32), first, row_stride, first + 1, 16, 16, 16)


@interpreted
def test_bottleneck_triton_stores():
    """Outputs, which nobody can hand over with such strides."""
    rows = far_apart(torch.zeros(3, 16).half(), 0)
    _store_ones[(3,)](rows, rows.stride(0))
    assert (rows == 1).all()


@interpreted
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["sequences", "heads", "rows"])
def test_shared_prefix_triton(dim):
    """Prefixes have no dimension of sequences."""
    lengths, count = torch.tensor([3, 1, 2]), torch.tensor([2, 3, 3])
    tensors = [half(3, 3, 3, 16), *(half(3, 3, 16) for _ in range(2)), *(half(3, 3, 3, 16) for _ in range(2))]
    placed = [far_apart(x, dim - (x.ndim == 3)) if dim or x.ndim == 4 else x for x in tensors]
    call = partial(lk.shared_prefix_attention, shared_lengths=count)
    close(call(*placed, lengths, backend="triton"), call(*tensors, lengths, backend="reference"))


@interpreted
@pytest.mark.parametrize("what", ["memory", "caches"])
@pytest.mark.parametrize("dim", [0, -3, -2, -1], ids=["layers", "heads", "tokens", "channels"])
def test_attach_kv_triton(what, dim):
    keys, values, caches, angles = half(3, 3, 3, 4), half(3, 3, 3, 4), half(2, 3, 3, 3, 3, 4), normal(3, 2).repeat(1, 2)
    slots, wanted = torch.tensor([2, 0, 1]), caches.clone()
    lk.attach_kv(keys, values, *wanted, slots, angles.cos(), angles.sin(), backend="reference")
    memory, written = (keys, values), list(caches)
    if what == "memory":
        memory = [far_apart(x, dim) for x in memory]
    else:
        written = [far_apart(x, dim) for x in written]
    lk.attach_kv(*memory, *written, slots, angles.cos(), angles.sin(), backend="triton")
    close(torch.stack(written), wanted)


@interpreted
@pytest.mark.parametrize("options", [KLOptions(), KLOptions(loss="mse")], ids=["kl", "mse"])
def test_linear_kl_triton(options):
    """Rows of the student, and rows of the teacher by another stride."""
    from lcc_kernels.linear_kl.triton_kernel import divergence_

    student, teacher = half(3, 40), half(3, 40)
    ours, plain = far_apart(student, 0), student.clone()
    loss = divergence_(ours, far_apart(torch.cat((teacher, teacher[:1])), 0)[:3], None, options, True)
    close((loss, ours), (torch_divergence_(plain, teacher, None, options, True), plain))
