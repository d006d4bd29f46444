"""Waiting for a device, and what a call allocates at its worst."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile


def synchronized(call: Callable[[], object], device: str) -> Callable[[], None]:
    """``call``, returning only when the device has finished."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes of tensors, internal ones too, that ``call`` holds at its worst beyond those held before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in memory), initial=0))


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, measured one after the other ``rounds`` times, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-2, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(found) for name, found in seconds.items()}


def device_seconds(call: Callable[[], object], calls: int = 100) -> float:
    """Mean time of a call on the GPU, of ``calls`` that follow one another without waiting for the host."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1e3 / calls
