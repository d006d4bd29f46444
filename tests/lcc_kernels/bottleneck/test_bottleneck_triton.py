"""What is particular to the Triton kernels; they run in Triton's interpreter, in a process of its own."""

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.bottleneck import schedule
from lcc_kernels.dispatch import interpreting
from lcc_kernels.tiles import Tile

pytest.importorskip("triton")
GPU = torch.cuda.is_available()


@pytest.mark.skipif(not (interpreting() or GPU), reason="needs a GPU or the interpreter")
def test_split_reductions_add_up(monkeypatch):
    """Buffer tiles reduced by several programs: the gradients of one program, twice the same bits."""
    layout = lk.BottleneckLayout(2, 3, 19, (30, 3))
    torch.manual_seed(0)
    shapes = [(2, heads, layout.total, 16) for heads in (2, 1, 1)]
    leaves = [torch.randn(shape, device="cuda" if GPU else "cpu", requires_grad=True) for shape in shapes]

    def gradients(backend):
        out = lk.bottleneck_attention(*leaves, layout, backend=backend)
        return torch.autograd.grad(out.square().sum(), leaves)

    monkeypatch.setattr(schedule, "SPLIT_ROWS", 16)
    schedule._recent.clear()
    once, twice = gradients("triton"), gradients("triton")
    schedule._recent.clear()
    assert all(map(torch.equal, once, twice))
    torch.testing.assert_close(once, gradients("torch"))


@pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
def test_token_counts_are_not_compiled_in():
    from lcc_kernels.bottleneck import triton_kernel

    fixed = {"HEAD_DIM", "WIDTH", "ROWS", "KEYS", "PRECISION"}
    for name in ("_forward", "_grad_q", "_grad_kv", "_reduce"):
        parameters = getattr(triton_kernel, name).params
        assert {parameter.name for parameter in parameters if parameter.is_constexpr} <= fixed
        assert "total" in {parameter.name for parameter in parameters if parameter.do_not_specialize}


def test_any_number_of_tiles_is_one_axis_of_programs(monkeypatch):
    """Only the first axis of a launch may have more than 65,535 programs."""
    from lcc_kernels.bottleneck import triton_kernel

    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *arguments, **options: None

    for name in ("_forward", "_grad_q", "_grad_kv", "_reduce"):
        monkeypatch.setattr(triton_kernel, name, Kernel())
    monkeypatch.setattr(triton_kernel, "architecture", lambda device: 90)
    alone = lk.BottleneckLayout(0, 0, 0, [1] * 70_000)
    layout = lk.BottleneckLayout.pack([alone, lk.BottleneckLayout(0, 5, 2, (200,))])
    q, k = torch.zeros(1, 4, layout.total, 16), torch.zeros(1, 2, layout.total, 16)
    out, lse = triton_kernel.forward(q, k, k, layout.spans, 0.3)
    triton_kernel.backward(q, q, k, k, out, lse, layout.spans, 0.3)
    plan, _ = triton_kernel._plan(q, layout.spans)
    tables = ((4, plan.query), (4, plan.grad_q), (2, plan.grad_kv), (2, plan.reduce))
    assert grids == [(heads * len(table),) for heads, table in tables]
    assert len(plan.query) > 65_535


def test_float32_products_are_never_cut_to_tf32():
    from lcc_kernels.bottleneck.triton_kernel import constants

    assert constants(64, torch.float32, Tile(32, 32, 4, 1))["PRECISION"] == "tf32x3"


@pytest.mark.skipif(not (interpreting() or GPU), reason="needs a GPU or the interpreter")
@pytest.mark.parametrize(
    ("dtype", "head_dim", "scale", "reason"),
    [
        (torch.float64, 32, None, "tensor-core"),
        (torch.float32, 160, None, "outside 16 ... 128"),
        (torch.float32, 32, 0.0, "above 0"),
        (torch.float32, 32, -0.5, "above 0"),
    ],
)
def test_refuses_what_it_cannot_run(dtype, head_dim, scale, reason):
    layout = lk.BottleneckLayout(0, 2, 1)
    q = torch.zeros(1, 1, 3, head_dim, dtype=dtype, device="cuda" if GPU else "cpu")
    with pytest.raises(lk.BackendUnavailableError, match=reason):
        lk.bottleneck_attention(q, q, q, layout, scale, backend="triton")
