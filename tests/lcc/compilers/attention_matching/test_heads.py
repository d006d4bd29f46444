"""One head's keys and values, matched: least squares against scipy, and what cannot be improved stays."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import lsq_linear

from lcc.compilers.attention_matching.heads import (
    LEAST,
    MOST,
    SELECTIONS,
    Head,
    highest_attention,
    least_squares,
    mass_weights,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def head():
    """60 queries over 20 keys of width 6."""
    return Head(drawn(60, 6), drawn(20, 6, seed=1), drawn(20, 6, seed=2))


def output(head, keys, values):
    return (head.queries @ keys.T).softmax(-1) @ values


@pytest.mark.parametrize("select", SELECTIONS.values())
def test_all_keys_kept_give_the_heads_own_output(head, select):
    keys, values = head.matched(20, select, fold=False)
    assert torch.equal(keys, head.keys)
    torch.testing.assert_close(output(head, keys, values), output(head, head.keys, head.values), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("select", SELECTIONS.values())
@pytest.mark.parametrize("fold", [True, False])
def test_no_other_values_come_nearer(head, select, fold):
    wanted = output(head, head.keys, head.values)
    keys, values = head.matched(5, select, fold)
    error = (output(head, keys, values) - wanted).norm()
    for seed in range(5):
        assert error < (output(head, keys, values + 0.01 * drawn(5, 6, seed=seed)) - wanted).norm()


@pytest.mark.parametrize("select", SELECTIONS.values())
def test_different_keys_are_kept_in_their_order(head, select):
    keys, _ = head.matched(7, select, fold=False)
    places = (keys[:, None] == head.keys).all(-1).nonzero()[:, 1].tolist()
    assert len(places) == 7
    assert places == sorted(set(places))


def test_the_highest_attention_is_a_root_mean_square():
    often, seldom = [0.4, 0.0, 0.6], [0.4, 1.0, 0.0]
    attention = torch.tensor([often, seldom, often])
    assert highest_attention(attention, 1).tolist() == [1]  # 0.58 on average of squares, 0.33 as a mean


def test_one_of_two_alike_keys_is_enough_for_the_pursuit():
    attention = torch.tensor([[0.45, 0.45, 0.1], [0.4, 0.4, 0.2]])
    assert sorted(SELECTIONS["omp"](attention, 2).tolist()) in ([0, 2], [1, 2])
    assert sorted(SELECTIONS["highest_attention"](attention, 2).tolist()) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_mass_weights_are_the_bounded_least_squares(seed):
    attention = drawn(40, 30, seed=seed).mul(3).softmax(-1)[:, :8]
    wanted = lsq_linear(attention.numpy(), torch.ones(40).numpy(), (LEAST, MOST), tol=1e-12).x
    torch.testing.assert_close(mass_weights(attention), torch.from_numpy(wanted), rtol=1e-2, atol=1e-2)


def test_the_folded_mass_reaches_keys_that_stand_for_many():
    """Eight keys alike: one of them, raised by log 8, has the attention of all where every query shares a component."""
    queries = torch.cat((torch.ones(50, 1, dtype=torch.float64), drawn(50, 3)), 1)
    alike, other = torch.tensor([0.2, 0.5, 0.0, 0.3]), torch.tensor([0.1, 0.0, 0.6, -0.4])
    keys = torch.stack([alike] * 8 + [other]).double()
    head = Head(queries, keys, drawn(9, 4, seed=3))

    def kept(attention, tokens):
        return torch.tensor([0, 8])

    raised = head.matched(2, kept, fold=True)[0]
    full = (queries @ keys.T).softmax(-1)
    torch.testing.assert_close((queries @ raised.T).softmax(-1)[:, 0], full[:, :8].sum(1), rtol=1e-3, atol=1e-3)


def test_least_squares_of_columns_that_are_alike():
    given = drawn(10, 1).expand(10, 3)
    found = least_squares(given, given[:, :1])
    torch.testing.assert_close(given @ found, given[:, :1], rtol=1e-4, atol=1e-4)
