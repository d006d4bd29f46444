"""The ways to attach a memory, as ``dispatch`` knows them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..dispatch import Backend, on_triton_device, register, triton_missing
from . import reference, torch_path
from .attachment import Attachment


def _triton() -> ModuleType:
    """The kernel's module, imported when first needed."""
    return import_module(".triton_kernel", __package__)


def _triton_refuses(attachment: Attachment) -> str | None:
    return on_triton_device(*attachment.tensors) or _triton().refuses(attachment)


register(
    "attach_kv",
    {
        "triton": Backend(lambda attachment: _triton().attach(attachment), triton_missing, _triton_refuses),
        "torch": Backend(torch_path.attach),
        "reference": Backend(reference.attach, automatic=False),
    },
)
