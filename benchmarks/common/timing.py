"""How long a call takes, on its device and on the host, and what it allocates at its worst."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from lcc.utils.device_memory import peak_bytes

__all__ = [
    "Queued",
    "copies",
    "in_turn",
    "peak_bytes",
    "queued_seconds",
    "replayed_seconds",
    "rotation",
    "synchronized",
]

GRAPH_CALLS = 32  # in a graph, at least: a replay's own start counts little then
MEASUREMENT = 0.1  # seconds that a measurement of calls in a row should take
LONGEST_ROW = 50

Call = Callable[[], object]


def synchronized(call: Call, device: str) -> Callable[[], None]:
    """``call``, returning only when the device has finished."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def in_turn(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median seconds of each call, measured one after the other ``rounds`` times, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-2, rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: median(measured) for name, measured in seconds.items()}


def rotation(moved: int, device: str) -> int:
    """How many sets of buffers take turns, for calls that move ``moved`` bytes each.

    On a GPU their bytes are twice its L2, so that no call finds its inputs there. On a CPU one set does.
    """
    if device != "cuda":
        return 1
    return -(-2 * torch.cuda.get_device_properties().L2_cache_size // moved)


def copies(moved: int, device: str) -> list[Call]:
    """Copies that read and write ``moved`` bytes together, of random ones: zeros may be quicker."""
    sources = [
        torch.randint(256, (moved // 2,), dtype=torch.uint8, device=device) for _ in range(rotation(moved, device))
    ]
    return [partial(torch.empty_like(source).copy_, source) for source in sources]


def replayed_seconds(calls: Sequence[Call], device: str, rounds: int = 20) -> float:
    """Median seconds of one of ``calls``: on a GPU of replays of a CUDA graph of them, in which the host has no part.

    Args:
        calls: the same work on buffers of its own each, as many as ``rotation`` says.
    """
    if device == "cuda":
        calls = list(calls) * -(-GRAPH_CALLS // len(calls))
        run = _captured(calls).replay
    else:
        run = _one_after_the_other(calls)
    for _ in range(2):
        run()
    return median(_measured(run, device).device for _ in range(rounds)) / len(calls)


class Queued(NamedTuple):
    """Seconds of one call: of the device, and until the host had queued it. Close together, the host was the slower."""

    device: float
    host: float


def queued_seconds(call: Call, device: str, rounds: int = 3) -> Queued:
    """Median seconds of a call among calls that follow one another without waiting; of a fraction of a second or so.

    For calls that keep a GPU busy for longer than the host takes to queue them; see ``replayed_seconds`` for others.
    """
    call()
    first = _measured(call, device).device
    calls = min(max(int(MEASUREMENT / first), 1), LONGEST_ROW)
    run = _one_after_the_other([call] * calls)
    times = [_measured(run, device) for _ in range(rounds)]
    return Queued(*(median(column) / calls for column in zip(*times, strict=True)))


def _one_after_the_other(calls: Sequence[Call]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _measured(run: Call, device: str) -> Queued:
    if device != "cuda":
        began = time.perf_counter()
        run()
        return Queued(*[time.perf_counter() - began] * 2)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    start.record()
    run()
    stop.record()
    host = time.perf_counter() - began
    torch.cuda.synchronize()
    return Queued(start.elapsed_time(stop) / 1e3, host)


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """A graph of the calls, which run on a stream of their own before, so that all is compiled and cached."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph
