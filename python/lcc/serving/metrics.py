"""What ``/metrics`` tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counts of a server.

    Args:
        stats: gauges of the engine, by name.
    """

    def __init__(self, stats: Callable[[], Mapping[str, float]]):
        self._registry, self._stats = CollectorRegistry(), stats
        self._requests = Counter("lcc_requests", "Requests by route and status.", ["route", "status"],
                                 registry=self._registry)  # fmt: skip
        self._tokens = Counter("lcc_generated_tokens", "Tokens of answers.", registry=self._registry)
        self._first = Histogram("lcc_first_token_seconds", "From a request to the first token of its answer.",
                                buckets=SECONDS, registry=self._registry)  # fmt: skip
        self._gauges: dict[str, Gauge] = {}

    def request(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()

    def answer(self) -> AnswerTimes:
        """The times of an answer that begins now."""
        return AnswerTimes(self._tokens, self._first)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        for name, value in self._stats().items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"lcc_{name}", f"{name.replace('_', ' ')}.", registry=self._registry)
            self._gauges[name].set(value)
        return generate_latest(self._registry)


class AnswerTimes:
    """When the tokens of an answer came."""

    def __init__(self, tokens: Counter, first: Histogram):
        self._tokens, self._first, self._began = tokens, first, time.perf_counter()
        self._waiting = True

    def piece(self, tokens: int) -> None:
        """So many tokens came."""
        if self._waiting and tokens:
            self._first.observe(time.perf_counter() - self._began)
            self._waiting = False
        self._tokens.inc(tokens)
