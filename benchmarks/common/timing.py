"""Waiting for a device, and what a call allocates at its worst."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from lcc.utils.device_memory import peak_bytes

__all__ = ["device_seconds", "in_turn", "peak_bytes", "synchronized"]


def synchronized(call: Callable[[], object], device: str) -> Callable[[], None]:
    """``call``, returning only when the device has finished."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, measured one after the other ``rounds`` times, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-2, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(measured) for name, measured in seconds.items()}


def device_seconds(call: Callable[[], object], calls: int = 100) -> float:
    """Mean time of a call on the GPU, of ``calls`` that follow one another without waiting for the host."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls
