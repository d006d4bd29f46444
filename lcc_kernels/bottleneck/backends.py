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


def _backends(direction: str) -> dict[str, Backend]:
    flash_missing, flash_refuses = flash_path.missing, flash_path.refuses
    return {
        "triton": Backend(_triton(direction), triton_missing, _triton_refuses),
        "torch": Backend(getattr(torch_path, direction)),
        "flash_attn": Backend(getattr(flash_path, direction), flash_missing, flash_refuses, automatic=False),
        "reference": Backend(getattr(reference, direction), automatic=False),
    }


register("bottleneck_attention", _backends("forward"))
register("bottleneck_attention_backward", _backends("backward"))
