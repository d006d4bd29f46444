"""The entropy of attention over the keys that are no sinks: what it is, its bounds, and few and many scores alike."""

from __future__ import annotations

import math

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.shared_prefix import torch_path
from tests.lcc_kernels.shared_prefix.batches import DEVICE, batch
from tests.lcc_kernels.shared_prefix.test_shared_prefix_options import AWKWARD, BACKENDS, check

SINKS = [0, 1, 4]


@pytest.fixture(params=[*BACKENDS, "torch of many scores"])
def backend(request, monkeypatch):
    """Every backend, and ``torch`` as it is for few scores and for many."""
    name, _, many = request.param.partition(" ")
    monkeypatch.setattr(torch_path, "FEW_SCORES", 0 if many else 10**9)
    return name


def entropy(inputs, backend, sinks, scale=0.3):
    """Of sequences without a prefix, (batch, heads, q_len)."""
    none = inputs.q.new_empty(inputs.q.shape[1] // 2, 0, inputs.q.shape[3])
    _, entropy = lk.shared_prefix_attention(
        inputs.q, none, none, *inputs.own, inputs.lengths, scale, backend, return_entropy=True, sinks=sinks
    )
    return entropy


@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize("lengths", [(9,), (700,), (9, 5, 33)], ids=str)
def test_a_decode_step_over_own_keys_alone(lengths, backend, sinks):
    """Plain decoding, one query a sequence: the entropy of the attention matrix without its sinks, renormalised."""
    inputs = batch(lengths, shared=0)
    got = entropy(inputs, backend, sinks)
    for number, length in enumerate(lengths):
        keys = inputs.own[0][number, :, :length].double().repeat_interleave(2, 0)
        matrix = (inputs.q[number].double() @ keys.mT * 0.3).softmax(-1)[..., sinks:]
        kept = matrix / matrix.sum(-1, keepdim=True)
        expected = torch.special.entr(kept).sum(-1)
        torch.testing.assert_close(got[number].double(), expected, atol=4e-6, rtol=1e-6)


@pytest.mark.parametrize("sinks", SINKS)
def test_of_equal_scores_it_is_the_logarithm_of_how_many_count(backend, sinks):
    inputs = batch((9, 5, 33, 2), shared=0)
    inputs.q.zero_()
    counted = [max(length - sinks, 1) for length in (9, 5, 33, 2)]
    expected = torch.tensor(counted, dtype=torch.float64, device=DEVICE).log()[:, None, None].expand(-1, 4, 1)
    torch.testing.assert_close(entropy(inputs, backend, sinks).double(), expected, atol=5e-7, rtol=0)


@pytest.mark.parametrize("sinks", SINKS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_it_is_between_0_and_the_logarithm_of_how_many_count(backend, scale, sinks):
    got = entropy(batch((40, 5, 33, 1), shared=0), backend, sinks, scale)
    for row, length in zip(got, (40, 5, 33, 1), strict=True):
        assert row.min() >= 0
        assert row.max() <= math.log(max(length - sinks, 1)) + 1e-6


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("sinks", [0, 2, 8, 1000])
@pytest.mark.parametrize("name", AWKWARD)
def test_many_scores_are_as_accurate_as_few(name, sinks, biased, monkeypatch):
    monkeypatch.setattr(torch_path, "FEW_SCORES", 0)
    check(batch(**AWKWARD[name], biased=biased), "torch", sinks)


@pytest.mark.parametrize("lead", [60.0, 85.0, 300.0])
def test_a_sink_beside_which_all_else_rounds_to_nothing(backend, lead):
    inputs = batch((4, 2))
    bias = torch.zeros(2, 19, device=DEVICE)
    bias[:, 0] = lead
    arguments = inputs.q, *inputs.shared, *inputs.own, inputs.lengths
    options = {"backend": backend, "return_entropy": True, "sinks": 1}
    _, expected = lk.shared_prefix_attention(*arguments, **options)
    _, got = lk.shared_prefix_attention(*arguments, **options, shared_bias=bias)
    torch.testing.assert_close(got, expected)
    assert (got > 1).all()
