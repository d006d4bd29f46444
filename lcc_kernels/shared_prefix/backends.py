"""The ways to run shared-prefix attention, as ``dispatch`` knows them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from ..dispatch import Backend, on_triton_device, register, triton_missing
from . import reference, torch_path


def _triton(function: str) -> Callable:
    """Defer to ``triton_kernel.function``, so that Triton is imported when a kernel is first wanted."""

    def deferred(*arguments: object) -> object:
        return getattr(import_module(".triton_kernel", __package__), function)(*arguments)

    return deferred


def _triton_refuses(q: torch.Tensor, *rest: object) -> str | None:
    return on_triton_device(q) or _triton("refuses")(q, *rest)


register(
    "shared_prefix_attention",
    {
        "triton": Backend(_triton("forward"), triton_missing, _triton_refuses),
        "torch": Backend(torch_path.forward),
        "reference": Backend(reference.forward, automatic=False),
    },
)
