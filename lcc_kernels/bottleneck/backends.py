"""The ways to run bottleneck attention, forward and backward, as ``dispatch`` knows them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..dispatch import Backend, on_triton_device, register, triton_missing
from . import flash_path, reference, torch_path


def _triton(function: str) -> Callable:
    """Defer to ``triton_kernel.function``, so that Triton is imported when a kernel is first wanted."""

    def deferred(*args: object, **kwargs: object) -> object:
        return getattr(import_module(".triton_kernel", __package__), function)(*args, **kwargs)

    return deferred


def _triton_refuses(*arguments: object) -> str | None:
    tensors = arguments[:3]  # the layout's spans stay on the CPU
    return on_triton_device(*tensors) or _triton("refuses")(*arguments)  # type: ignore[arg-type]


for _op, _direction in (("bottleneck_attention", "forward"), ("bottleneck_attention_backward", "backward")):
    register(
        _op,
        {
            "triton": Backend(_triton(_direction), triton_missing, _triton_refuses),
            "torch": Backend(getattr(torch_path, _direction)),
            "flash_attn": Backend(
                getattr(flash_path, _direction), flash_path.missing, flash_path.refuses, automatic=False
            ),
            "reference": Backend(getattr(reference, _direction), automatic=False),
        },
    )
