"""LinearKL is linear_kl behind a head that stays its model's."""

from __future__ import annotations

import copy

import pytest
import torch

import lcc_kernels as lk

from .kl_cases import make_head


def make_module(dtype=torch.float32, bias=True, **options):
    """The arguments of a call, the head as a Linear (33, 8), and the loss behind it."""
    student, teacher, weight, offset = make_head(5, 8, 33, dtype, bias=bias)
    head = torch.nn.Linear(8, 33, bias=bias, dtype=dtype)
    head.load_state_dict({"weight": weight, **({"bias": offset} if bias else {})})
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    return (student, teacher, weights), head, lk.LinearKL(head, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"direction": "jsd", "beta": 0.3, "reduction": "none", "vocab_size": 30}])
def test_it_is_the_op_with_its_options_set(bias, dtype, options):
    arguments, head, loss = make_module(dtype, bias, **options)
    student, teacher, weights = arguments
    for given in (None, weights):
        expected = lk.linear_kl(student, teacher, head.weight, head.bias, row_weight=given, **options)
        actual = loss(student, teacher, given)
        assert torch.equal(actual, expected)
        gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (actual, expected)]
        assert torch.equal(*gradients)
    assert head.weight.grad is None


def test_a_head_without_a_bias_at_all():
    (student, teacher, _), head, _ = make_module(bias=False)
    bare = torch.nn.Module()
    bare.weight = head.weight
    assert torch.equal(lk.LinearKL(bare)(student, teacher), lk.linear_kl(student, teacher, head.weight))


def test_the_head_stays_the_models():
    (student, teacher, _), head, loss = make_module()
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert loss.to(torch.bfloat16).head.weight.dtype == torch.float32
    head.double()
    head.weight = torch.nn.Parameter(2 * head.weight.detach())
    expected = lk.linear_kl(student.double(), teacher.double(), head.weight, head.bias)
    assert torch.equal(loss(student.double(), teacher.double()), expected)


def test_a_copy_of_a_model_with_its_loss_has_a_head_of_its_own():
    arguments, head, loss = make_module()
    model = torch.nn.ModuleDict({"head": head, "loss": loss})
    copied = copy.deepcopy(model)
    assert copied["loss"].head is copied["head"] is not head
    assert torch.equal(copied["loss"](*arguments), loss(*arguments))


def test_it_says_what_it_is():
    *_, loss = make_module(direction="reverse", temperature=2.0)
    assert repr(loss) == "LinearKL(hidden=8, vocab=33, direction='reverse', temperature=2.0)"


@pytest.mark.parametrize("name", ["smoothing", "row_weight", "weight", "bias"])
def test_what_is_no_option_is_refused_at_once(name):
    with pytest.raises(TypeError, match=name):
        lk.LinearKL(torch.nn.Linear(8, 33), **{name: None})


def test_a_value_that_does_not_fit_is_refused():
    (student, teacher, _), _, loss = make_module(reduction="batchmean")
    with pytest.raises(ValueError, match="reduction must be"):
        loss(student, teacher)


def test_compiles_without_a_graph_break():
    arguments, _, loss = make_module(softcap=3.0)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), loss(*arguments))
