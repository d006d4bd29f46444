"""The ops under autocast, ``torch.func`` and forward-mode differentiation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import forward_ad

import lcc_kernels as lk

LAYOUT = lk.BottleneckLayout(2, 9, 4, (3, 5))


def _numbers(*shape):
    """Numbers between -2 and 2 without a generator, which ``vmap`` refuses."""
    return 2 * (torch.arange(math.prod(shape)) + len(shape)).mul(1.7).sin().view(shape)


def _attention(q, backend):
    k, v = _numbers(1, 2, LAYOUT.total, 16), _numbers(1, 2, LAYOUT.total, 16)
    return lk.bottleneck_attention(q, k, v, LAYOUT, backend=backend)


def _linear_kl(student, backend):
    return lk.linear_kl(student, _numbers(5, 8) + 1, _numbers(33, 8), backend=backend)


def _kl(student, backend):
    return lk.kl_from_logits(student, _numbers(5, 33) + 1, backend=backend)


def _prefix(q, backend):
    shared, own = _numbers(2, 7, 16), _numbers(3, 2, 6, 16)
    return lk.shared_prefix_attention(q, shared, shared, own, own, torch.tensor([1, 6, 3]), backend=backend)


TRAINED = {
    "bottleneck_attention": (_attention, (1, 4, LAYOUT.total, 16)),
    "linear_kl": (_linear_kl, (5, 8)),
    "kl_from_logits": (_kl, (5, 33)),
}
BACKENDS = ("torch", "reference")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", TRAINED)
def test_autocast_changes_no_number_of_a_trained_op(op, backend):
    run, shape = TRAINED[op]
    inputs = _numbers(*shape).requires_grad_()
    out = run(inputs, backend)
    upstream = _numbers(*out.shape)
    (gradient,) = torch.autograd.grad(out, inputs, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        cast = run(inputs, backend)
        (cast_gradient,) = torch.autograd.grad(cast, inputs, upstream)
    assert torch.equal(cast, out)
    torch.testing.assert_close(cast_gradient, gradient)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_no_number_of_the_shared_prefix(backend):
    q = _numbers(3, 4, 1, 16)
    out = _prefix(q, backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_prefix(q, backend), out)


TRANSFORMS = {
    "grad": lambda loss, x: torch.func.grad(loss)(x),
    "vjp": torch.func.vjp,
    "jacrev": lambda loss, x: torch.func.jacrev(loss)(x),
    "jvp": lambda loss, x: torch.func.jvp(loss, (x,), (x,)),
    "jacfwd": lambda loss, x: torch.func.jacfwd(loss)(x),
    "hessian": lambda loss, x: torch.func.hessian(loss)(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", TRAINED)
def test_transforms_that_differentiate_are_refused(op, transform):
    run, shape = TRAINED[op]
    refusal = rf"{op} cannot be differentiated by torch.func.*torch\.autograd\.grad"
    with pytest.raises(RuntimeError, match=refusal):
        TRANSFORMS[transform](lambda x: run(x, "torch").sum(), _numbers(*shape))


@pytest.mark.parametrize("op", TRAINED)
def test_tangents_are_refused(op):
    run, shape = TRAINED[op]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(_numbers(*shape), _numbers(*shape))
        with pytest.raises(RuntimeError, match=rf"{op} cannot be differentiated .*forward mode"):
            run(dual, "torch")
        assert run(_numbers(*shape), "torch").isfinite().all()


@pytest.mark.parametrize("op", TRAINED)
def test_vmap_is_taken(op):
    run, shape = TRAINED[op]
    inputs = _numbers(3, *shape)
    one_by_one = torch.stack([run(x, "torch") for x in inputs])
    torch.testing.assert_close(torch.func.vmap(lambda x: run(x, "torch"))(inputs), one_by_one)


@pytest.mark.parametrize("run", [_linear_kl, _kl])
def test_the_reference_of_the_losses_takes_every_transform(run):
    shape = (5, 8) if run is _linear_kl else (5, 33)
    inputs, tangent = _numbers(*shape), _numbers(*shape) + 1
    gradient = torch.func.grad(lambda x: run(x, "reference"))(inputs)
    _, slope = torch.func.jvp(lambda x: run(x, "reference"), (inputs,), (tangent,))
    leaf = inputs.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(run(leaf, "torch"), leaf)[0])
    torch.testing.assert_close(slope, (gradient * tangent).sum())
