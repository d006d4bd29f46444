"""Modes of torch that the ops stand outside of: autocast, and the derivatives that they do not have."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd.forward_ad import unpack_dual


def without_autocast(run: Callable) -> Callable:
    """``run``, with each product in the dtype of its operands: autocast rounds none of an op's own numbers.

    ``torch.library.register_autocast`` would round an op's inputs, to one dtype whatever that of the autocast.
    """
    devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    if not devices:
        return run

    def outside(*args: object, **kwargs: object) -> object:
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return run(*args, **kwargs)

    return outside


def refuse_transforms(op: str, *inputs: torch.Tensor) -> None:
    """Refuse ``torch.func`` transforms that differentiate ``inputs``, and their tangents in forward mode.

    ``torch.library`` has no rule for either: the first would fail in torch, the second give a derivative of zero.

    Raises:
        RuntimeError: always one that names ``torch.autograd.grad``.
    """
    if torch.compiler.is_compiling():
        return
    level = peek_interpreter_stack()
    differentiated = level is not None and level.key() == TransformType.Grad and any(x.requires_grad for x in inputs)
    if differentiated or any(unpack_dual(x).tangent is not None for x in inputs):
        raise RuntimeError(
            f"{op} cannot be differentiated by torch.func or in forward mode: take the gradient with "
            "torch.autograd.grad or backward()"
        )
