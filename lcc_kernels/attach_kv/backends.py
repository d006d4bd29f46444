"""The ways to attach a memory, as ``dispatch`` knows them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..dispatch import Backend, on_triton_device, register, triton_missing
from ..library import cuda_missing
from . import cuda_kernel, reference, torch_path
from .attachment import Attachment


def _triton() -> ModuleType:
    """The kernel's module, imported when first needed."""
    return import_module(".triton_kernel", __package__)


def _triton_refuses(attachment: Attachment) -> str | None:
    return on_triton_device(*attachment.tensors) or _triton().refuses(attachment)


# ``cuda`` runs on request only: ``auto`` takes a kernel once it is measured to be the faster one.
register(
    "attach_kv",
    {
        "triton": Backend(lambda attachment: _triton().attach(attachment), triton_missing, _triton_refuses),
        "torch": Backend(torch_path.attach),
        "cuda": Backend(cuda_kernel.attach, cuda_missing, cuda_kernel.refuses, automatic=False),
        "reference": Backend(reference.attach, automatic=False),
    },
)
