"""What the torch backend promises about its cost."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lcc_kernels as lk
from lcc_kernels.bottleneck import torch_path


class Calls(TorchDispatchMode):
    """Counts attention calls and remembers the largest tensor that any op returned."""

    def __init__(self):
        super().__init__()
        self.attentions, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.attentions += "flash_attention" in str(func)
        sizes = [x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def watch(layout, heads=2, head_dim=8):
    q = torch.randn(1, heads, layout.total, head_dim, requires_grad=True)
    with Calls() as calls:
        lk.bottleneck_attention(q, q, q, layout, backend="torch").sum().backward()
    return calls


def test_thousands_of_segments_are_a_few_calls():
    layout = lk.BottleneckLayout(2, 50, 4, [1 + number % 40 for number in range(2_000)])
    assert watch(layout).attentions <= 2 * 30


def test_never_allocates_the_square():
    layout = lk.BottleneckLayout(2, 2_000, 100, (2_000, *[16] * 60))
    assert watch(layout).largest <= 2 * 8 * layout.total


@pytest.mark.parametrize("threads", [1, 3])
def test_long_spans_strided_inputs_and_expanded_gradients(threads, monkeypatch):
    """Spans with calls of their own, head slices of any number of threads, rows that are not contiguous in memory."""
    monkeypatch.setattr(torch_path, "SMALL_COPY", 0)
    layout = lk.BottleneckLayout(3, 600, 4, (5, 0, 700))
    torch.manual_seed(0)
    wide = [torch.randn(1, heads, layout.total, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    leaves = [x[..., ::2].requires_grad_() for x in wide]
    results = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for backend in ("torch", "reference"):
            out = lk.bottleneck_attention(*leaves, layout, backend=backend)
            results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
