"""The tiles of a GPU on rows that fill many of them: against float64 on a GPU, and in Triton's interpreter."""

import pytest
import torch

from lcc_kernels.dispatch import interpreting
from tests.lcc_kernels.bottleneck.layouts import LARGE
from tests.lcc_kernels.bottleneck.truth import DEVICE, assert_near_dense, tensors

KINDS = [(dtype, size) for dtype in (torch.float16, torch.bfloat16) for size in (16, 40, 64, 96, 128, 192, 256)]
KINDS += [(torch.float32, size) for size in (16, 64, 96, 128)]
TILES = [(arch, torch.float16, size) for arch in (80, 90) for size in (64, 128, 192)]
TILES += [(90, torch.float32, size) for size in (64, 96)]
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
    layout = LARGE["packed"]
    assert_near_dense(layout, "triton", tensors(layout, 1, 1, head_dim, dtype))
