"""The ways to run shared-prefix attention, as ``dispatch`` knows them."""

from __future__ import annotations

from ..dispatch import Backend, register
from . import reference, torch_path

register(
    "shared_prefix_attention",
    {
        "torch": Backend(torch_path.forward),
        "reference": Backend(reference.forward, automatic=False),
    },
)
