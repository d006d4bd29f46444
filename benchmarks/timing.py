"""Waiting for a device, and what a call allocates at its worst."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lcc.probe import peak_bytes

__all__ = ["peak_bytes", "synchronized"]


def synchronized(call: Callable[[], object], device: str) -> Callable[[], None]:
    """``call``, returning only when the device has finished."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run
