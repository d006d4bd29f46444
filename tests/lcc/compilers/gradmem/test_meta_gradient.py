"""Gradients through unrolled writes, against finite differences, and what ``first`` leaves out."""

from __future__ import annotations

import pytest
import torch

from lcc.compilers.gradmem.learned import writing_model
from lcc.compilers.gradmem.starts import text_starts
from tests.lcc.compilers.gradmem.cases import FORMS, case, one_start
from tests.lcc.compilers.gradmem.test_writing import equal

RATES = (0.6, 0.4)
# Of a central difference.
STEP = 1e-5


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def outer(made, start, rates, grad_mode="second"):
    """The questions' loss behind memories that begin with one ``start``."""
    memories = {name: tensor.expand(3, *tensor.shape) for name, tensor in start.items()}
    return made.read_loss(made.write(rates, grad_mode, start=memories).memory)


def check_slopes(loss, *parameters):
    """Compare the gradients of ``loss()`` with central differences, along a random way in each parameter."""
    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        way, ends = torch.randn(parameter.shape, generator=generator, dtype=torch.float64), []
        for step in (STEP, -STEP):
            with torch.no_grad():
                parameter.add_(step * way)
            ends.append(loss().detach())
            with torch.no_grad():
                parameter.sub_(step * way)
        measured = (ends[0] - ends[1]) / (2 * STEP)
        torch.testing.assert_close((parameter.grad * way).sum(), measured, rtol=1e-6, atol=1e-9)


def test_the_meta_gradient_is_that_of_finite_differences(form):
    with case(form) as made:
        start, _ = one_start(form, 3, requires_grad=True)
        rates = torch.tensor(RATES, dtype=torch.float64, requires_grad=True)
        check_slopes(lambda: outer(made, start, rates), *start.values(), rates)


def test_a_projection_is_learned_through_the_writes(form):
    with case(form) as made:
        start, _ = one_start(form, 3)
        name = next(iter(start))
        weight = torch.eye(start[name].shape[-1], dtype=torch.float64).requires_grad_()
        made.options = {"used": lambda memory: memory | {name: memory[name] @ weight.mT}}
        check_slopes(lambda: outer(made, start, RATES), weight)


def test_the_model_is_reached_through_the_writes(form):
    with case(form) as made:
        # The prefix was read before, and stays as it was.
        weight = made.model.model.layers[1].self_attn.v_proj.weight.requires_grad_()
        start, _ = one_start(form, 3)
        check_slopes(lambda: outer(made, start, RATES), weight)


def test_a_lora_that_makes_the_start_is_learned_through_it_and_the_writes():
    with case("kv") as made, writing_model(made.model, {}, rank=2) as (applied, lora):

        def loss():
            start = text_starts(made.model, made.prefix, made.ids, made.counted, 3, "kv", applied)
            return made.read_loss(made.write(RATES, "second", start=start).memory)

        # The second half of a fresh LoRA is zero, and the first has no gradient then.
        for tensor in lora.values():
            tensor.data += 0.1
        check_slopes(loss, *(tensor for name, tensor in lora.items() if "layers.1" in name))


def test_first_order_is_second_order_with_the_identity_for_the_jacobian(form):
    with case(form) as made:
        start, memories = one_start(form, 3, requires_grad=True)
        rates = torch.tensor(RATES, dtype=torch.float64, requires_grad=True)
        outer(made, start, rates, "first").backward()
        last = made.write(RATES, start=memories).memory
        ends = {name: tensor.clone().requires_grad_() for name, tensor in last.items()}
        slopes = torch.autograd.grad(made.read_loss(ends), list(ends.values()))
        equal(
            {name: tensor.grad for name, tensor in start.items()},
            {name: slope.sum(0) for name, slope in zip(ends, slopes, strict=True)},
        )
        before = made.write(RATES[:1], start=memories).memory
        written = {name: (last[name] - before[name]) / RATES[1] for name in last}
        expected = sum((written[name] * slope).sum() for name, slope in zip(ends, slopes, strict=True))
        torch.testing.assert_close(rates.grad[1], expected)


def test_second_order_is_not_first_order(form):
    with case(form) as made:
        slopes = {}
        for grad_mode in ("first", "second"):
            start, _ = one_start(form, 3, requires_grad=True)
            outer(made, start, RATES, grad_mode).backward()
            slopes[grad_mode] = torch.cat([tensor.grad.flatten() for tensor in start.values()])
        assert (slopes["first"] - slopes["second"]).norm() > 0.05 * slopes["first"].norm()
