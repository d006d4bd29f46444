"""``benchmarks.common.timing``: whose turn it is, what is divided by what, and what a GPU's cache asks for."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless a call lets it go on."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now.seconds)
    return now


@pytest.fixture
def graphs(monkeypatch, clock):
    """Graphs that replay their calls at once, and events that read the clock: a GPU's part of the timer on a CPU."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.seconds

        def elapsed_time(self, other):
            return (other.at - self.at) * 1e3

    captured = []

    def capture(calls):
        captured.append(calls)
        return SimpleNamespace(replay=lambda: [call() for call in calls])

    monkeypatch.setattr(timing, "_captured", capture)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return captured


def taking(clock, seconds, name, made):
    def call():
        made.append(name)
        clock.seconds += seconds

    return call


def test_buffers_take_turns_and_a_call_is_their_mean(clock):
    made = []
    calls = [taking(clock, seconds, name, made) for seconds, name in ((1.0, "a"), (2.0, "b"), (6.0, "c"))]
    assert timing.replayed_seconds(calls, "cpu", rounds=3) == pytest.approx(3.0)
    assert "".join(made) == "abc" * 5  # two rounds before those that are timed


def test_a_graph_holds_every_buffer_many_times(clock, graphs):
    made = []
    calls = [taking(clock, seconds, name, made) for seconds, name in ((1.0, "a"), (2.0, "b"), (6.0, "c"))]
    assert timing.replayed_seconds(calls, "cuda", rounds=1) == pytest.approx(3.0)
    (captured,) = graphs
    assert captured == calls * 11


def test_a_graph_is_captured_of_calls_that_have_run_on_a_stream_of_their_own(monkeypatch):
    said = []
    stream = SimpleNamespace(wait_stream=lambda other: said.append("wait"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")

    @contextmanager
    def inside(what):
        said.append(f"into {what if isinstance(what, str) else 'stream'}")
        yield
        said.append("out")

    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "graph", inside)
    assert timing._captured([lambda: said.append("a"), lambda: said.append("b")]) == "graph"
    assert said == ["wait", "into stream", "a", "b", "out", "wait", "into graph", "a", "b", "out"]


def test_calls_in_a_row_are_timed_by_the_device_and_by_the_host(monkeypatch, clock, graphs):
    made = []
    assert timing.queued_seconds(taking(clock, 0.02, "a", made), "cpu") == pytest.approx((0.02, 0.02))
    assert len(made) == 2 + 3 * 5  # a tenth of a second in a row
    measured = timing.queued_seconds(taking(clock, 0.5, "b", made), "cuda")
    assert measured == pytest.approx((0.5, 0.5))
    assert made.count("b") == 2 + 3


def test_on_a_gpu_buffers_exceed_its_cache_twice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=60))
    assert [timing.rotation(moved, "cuda") for moved in (1, 7, 60, 119, 120, 121, 999)] == [120, 18, 2, 2, 1, 1, 1]
    assert timing.rotation(1, "cpu") == 1


def test_copies_move_what_they_are_told():
    (copy,) = timing.copies(2000, "cpu")
    target = copy()
    assert target.nbytes == 1000
    assert len(target.unique()) > 100
