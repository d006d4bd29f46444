"""The tiles of a GPU on rows that fill many of them: against float64 on a GPU, and in Triton's interpreter."""

from dataclasses import astuple

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.bottleneck.tiles import tiles
from lcc_kernels.dispatch import interpreting
from tests.lcc_kernels.bottleneck.layouts import LARGE, packed
from tests.lcc_kernels.bottleneck.truth import DEVICE, assert_near_dense, tensors

KINDS = [(dtype, size) for dtype in (torch.float16, torch.bfloat16) for size in (16, 40, 64, 96, 128, 192, 256)]
KINDS += [(torch.float32, size) for size in (16, 64, 96, 128)]
TILES = [(arch, torch.float16, size) for arch in (80, 90) for size in (64, 128, 192)]
TILES += [(90, torch.float32, 64)]  # wider ones are the tiles of the other tests
GPU = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize(("dtype", "head_dim"), KINDS, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_triton_at_every_tile(name, dtype, head_dim):
    layout = LARGE[name]
    assert_near_dense(layout, "triton", tensors(layout, 4, 2, head_dim, dtype, batch=2))


@pytest.mark.slow
@pytest.mark.skipif(not interpreting(), reason="needs the interpreter")
@pytest.mark.parametrize(("arch", "dtype", "head_dim"), TILES, ids=str)
def test_triton_with_the_tiles_of_a_gpu(arch, dtype, head_dim, monkeypatch):
    monkeypatch.setattr("lcc_kernels.bottleneck.triton_kernel.architecture", lambda device: arch)
    chosen = astuple(tiles(arch, head_dim, dtype))
    layout = packed(max(side for rows, keys, *_ in chosen for side in (rows, keys)))
    assert_near_dense(layout, "triton", tensors(layout, 1, 1, head_dim, dtype))


@pytest.mark.skipif(not interpreting() and DEVICE == "cpu", reason="needs a GPU or the interpreter")
def test_triton_where_places_need_64_bits(monkeypatch):
    """Rows 2**25 elements apart: those of one tile, too, are more than 2**31 elements from one another."""
    if interpreting():
        monkeypatch.setattr("lcc_kernels.bottleneck.triton_kernel.architecture", lambda device: 90)
    layout = lk.BottleneckLayout(2, 50, 18, (10, 3))
    memory = torch.empty(layout.total, 2**25, dtype=torch.float16, device=DEVICE)  # only the pages used are there
    near = [x.detach() for x in tensors(layout, 1, 1, 16, torch.float16)]
    far = [memory[None, None, :, 16 * number :][..., :16].copy_(x) for number, x in enumerate(near)]

    def outputs(grad, q, k, v):
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out = lk.bottleneck_attention(*leaves, layout, backend="triton")
        return [out, *torch.autograd.grad(out, leaves, grad)]

    assert all(map(torch.equal, outputs(*near), outputs(*far)))
