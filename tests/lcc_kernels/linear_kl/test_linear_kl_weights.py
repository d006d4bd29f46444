"""Row weights where rows come in chunks, and where they go to the kernel, against sums that know no chunks."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.linear_kl import driver
from lcc_kernels.linear_kl.options import KLOptions

from .kl_cases import make_head, naive_linear_rows

BACKENDS = [name for name, missing in lk.available_backends("linear_kl").items() if missing is None]
WEIGHTS = [2.0, 0.0, 0.5, 1.0, 3.0, 0.0, 0.25]


class OnAGpu(torch.Tensor):
    """A tensor of the CPU that says it is elsewhere."""

    device = torch.device("cuda")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_bytes", [None, 2 * 33 * 4 * 3, 200])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_chunks_against_an_independent_sum(backend, chunk_bytes, reduction):
    head = make_head(7, 8, 33)
    weights = torch.tensor(WEIGHTS)
    if backend == "triton" and chunk_bytes == 200:
        pytest.skip("a row does not fit")
    loss = lk.linear_kl(*head, row_weight=weights, reduction=reduction, chunk_bytes=chunk_bytes, backend=backend)
    exact = [x.detach().double() for x in head]
    exact[0].requires_grad_()
    total = sum(weight * row for weight, row in zip(WEIGHTS, naive_linear_rows(*exact), strict=True))
    total = total / (sum(WEIGHTS) if reduction == "mean" else 1)
    torch.testing.assert_close(loss.double(), total)
    (gradient,), (wanted,) = torch.autograd.grad(loss, head[0]), torch.autograd.grad(total, exact[0])
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_kernel_is_given_the_weights_of_its_rows():
    """Weights on a GPU are not read before the kernel, so that it gets those of its chunk."""
    head, weights = make_head(7, 8, 33), torch.tensor(WEIGHTS)

    def kernel(student, teacher, row_weight, options, with_grad):
        return row_weight * (student - teacher).square().sum(-1)

    with torch.no_grad():
        loss, _ = driver.linear_kl_rows(kernel, *head, weights, KLOptions(chunk_bytes=2 * 33 * 4 * 3), False)
        difference = (head[0] - head[1]) @ head[2].mT
    torch.testing.assert_close(loss, torch.stack([w * d.dot(d) for w, d in zip(weights, difference, strict=True)]))


@pytest.mark.parametrize("with_grad", [True, False])
def test_what_a_kernel_leaves_in_rows_of_weight_0_counts_for_nothing(with_grad):
    """On a GPU the kernel leaves such rows alone, whatever is in them."""
    weights, rows = torch.tensor(WEIGHTS).as_subclass(OnAGpu), torch.full((7, 3), torch.nan)

    def run(student, teacher, row_weight):
        assert row_weight is weights
        dead = torch.tensor(WEIGHTS)[:, None] == 0
        left = torch.where(dead, torch.nan, 1.0)
        return left[:, 0].clone(), left.expand(7, 3).clone() if with_grad else torch.empty(0, 3)

    loss, gradient = driver.live_rows(run, rows, rows, weights, with_grad)
    alive = torch.tensor(WEIGHTS).ne(0).float()
    assert torch.equal(loss, alive)
    assert torch.equal(gradient, alive[:, None].expand(7, 3)[: len(gradient)])
    assert len(gradient) == 7 * with_grad
