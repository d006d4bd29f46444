"""Our Muon beside torch's."""

from __future__ import annotations

import pytest
import torch

from lcc.training.optimizers import Muon, orthogonalized

SHAPES = [(6, 20), (20, 6), (6, 20), (8, 8)]


@pytest.fixture(params=[0.95, 0.7])
def both(request):
    """The same matrices under torch's Muon and under ours."""
    torch.manual_seed(0)
    theirs = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    ours = [torch.nn.Parameter(matrix.detach().clone()) for matrix in theirs]
    reference = torch.optim.Muon(
        theirs, lr=0.1, weight_decay=0.0, momentum=request.param, adjust_lr_fn="match_rms_adamw"
    )
    return theirs, reference, ours, Muon(ours, lr=0.1, momentum=request.param)


def test_the_same_steps_as_torch_but_for_bfloat16(both):
    theirs, reference, ours, mine = both
    starts = [matrix.detach().clone() for matrix in ours]
    for _ in range(4):
        for one, other in zip(theirs, ours, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        reference.step()
        mine.step()
    for one, other, start in zip(theirs, ours, starts, strict=True):
        assert (one - other).norm() < 0.02 * (one - start).norm()
        torch.testing.assert_close(
            mine.state[other]["momentum_buffer"], reference.state[one]["momentum_buffer"], rtol=0, atol=1e-6
        )


def test_a_matrix_without_gradient_stands(both):
    _, _, ours, mine = both
    before = [matrix.detach().clone() for matrix in ours]
    ours[0].grad, ours[1].grad = torch.zeros(SHAPES[0]), torch.ones(SHAPES[1])
    mine.step()
    assert [torch.equal(matrix, then) for matrix, then in zip(ours, before, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("shape", [(3, 5, 40), (3, 40, 5), (1, 7, 7)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(shape, dtype=torch.float64)))
    assert values.min() > 0.6
    assert values.max() < 1.3
