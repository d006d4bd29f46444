"""The ways to run shared-prefix attention, as ``dispatch`` knows them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..dispatch import Backend, on_triton_device, register, triton_missing
from . import reference, torch_path
from .batch import PrefixBatch


def _triton() -> ModuleType:
    """What launches the kernel, imported when first needed: it imports triton."""
    return import_module(".launch", __package__)


def _triton_refuses(batch: PrefixBatch) -> str | None:
    return on_triton_device(batch.q) or _triton().refuses(batch)


register(
    "shared_prefix_attention",
    {
        "triton": Backend(lambda batch: _triton().forward(batch), triton_missing, _triton_refuses),
        "torch": Backend(torch_path.forward),
        "reference": Backend(reference.forward, automatic=False),
    },
)
