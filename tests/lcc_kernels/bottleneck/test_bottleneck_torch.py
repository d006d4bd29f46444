"""What the torch backend promises about its cost."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lcc_kernels as lk


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
    assert watch(layout).attentions <= 2 * 2 * 30


def test_never_allocates_the_square():
    layout = lk.BottleneckLayout(2, 2_000, 100, (2_000, *[16] * 60))
    assert watch(layout).largest <= 2 * 8 * layout.total
