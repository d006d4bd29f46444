"""The ways to attach a memory, as ``dispatch`` knows them."""

from __future__ import annotations

from ..dispatch import Backend, register
from . import reference, torch_path

register(
    "attach_kv",
    {
        "torch": Backend(torch_path.attach),
        "reference": Backend(reference.attach, automatic=False),
    },
)
