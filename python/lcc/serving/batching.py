"""Continuous batching in a thread of its own: requests of any memories enter and leave one batch token by token."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..modeling.architecture import supports_sharing
from ..modeling.kv import KV
from ..modeling.model_copy import share_weights
from ..modeling.row_cache import PREFILL_TOKENS, Row, RowCache, logits_of
from .api_errors import ApiError, too_many
from .drawing import Draws, next_tokens
from .engine import Finish

log = logging.getLogger(__name__)
# Room for so many tokens is made when rows enter.
ROOM = 32
# Finished rows leave when others enter, or when they are this share of the batch.
LEAVING = 1 / 4
# A token, or why the answer ends.
Event = int | Finish | Exception


@dataclass
class Job:
    """One answer.

    Attributes:
        key: of the prefix; equal keys stand for the same one.
        prefix: makes it; it may raise.
        ids: tokens behind it.
        deliver: called with events, from the batch's thread.
        cancelled: nobody reads the answer any more.
    """

    key: Hashable
    prefix: Callable[[], KV]
    ids: tuple[int, ...]
    max_new_tokens: int
    draws: Draws
    deliver: Callable[[Event], None]
    cancelled: bool = False
    written: int = 0
    last: int = 0
    finished: bool = False


class Batch:
    """The rows that a model writes together.

    Args:
        ends: tokens that end an answer.
        rows: at most.
        waiting: jobs that may wait for a place.
    """

    def __init__(self, model: PreTrainedModel, ends: frozenset[int], rows: int, waiting: int):
        self.shares = supports_sharing(model)
        self.model, self.ends = share_weights(model), ends
        self.most_rows, self.most_waiting = rows, waiting
        self._waiting: deque[Job] = deque()
        self._rows: list[Job] = []
        self._cache: RowCache | None = None
        # Prefixes of the rows and of those that enter, and the order in which the cache holds them.
        self._prefixes: dict[Hashable, KV] = {}
        self._held: list[Hashable] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="lcc-batch", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            ApiError: 429: too many wait; 503: the server is shutting down.
        """
        with self._changed:
            if self._closing:
                raise ApiError(503, "the server is shutting down", retry_after=5)
            if len(self._waiting) >= self.most_waiting:
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
            if len(self._waiting) >= self.most_waiting:
                raise too_many(len(self._waiting))
            self._waiting.append(job)
            self._changed.notify()

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return sum(not job.finished for job in self._rows)

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        with self._changed:
            return sum(not job.cancelled for job in self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End: what is under way gets an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._rows or self._closing):
                    self._changed.wait()
                if self._closing:
                    break
                entering = self._entering()
            try:
                self._turn(entering)
            except Exception as error:
                log.exception("a step of the batch failed")
                self._fail([*self._rows, *entering], error)
        self._fail([*self._rows, *self._waiting], ApiError(503, "the server is shutting down", retry_after=5))

    def _entering(self) -> list[Job]:
        """Jobs that find a place now: as many tokens as are read at once, or a single job with more."""
        entering: list[Job] = []
        longest = 0
        while self._waiting and self.running + len(entering) < self.most_rows:
            longest = max(longest, len(self._waiting[0].ids))
            if entering and longest * (len(entering) + 1) > PREFILL_TOKENS:
                break
            entering.append(self._waiting.popleft())
        return entering

    @torch.no_grad()
    def _turn(self, entering: Sequence[Job]) -> None:
        """Let rows in and out, and write one token in each."""
        for job in self._rows:
            job.finished |= job.cancelled
        entering = [job for job in entering if not job.cancelled and self._place(job)]
        left = len(self._rows) - self.running
        if entering or left >= max(1, LEAVING * len(self._rows)):
            self._refill(entering)
        # In the same turn: rows that are being written never wait for more than one reading of others.
        if self.running:
            self._step()

    def _place(self, job: Job) -> bool:
        """Whether the job's prefix is there."""
        if job.key not in self._prefixes:
            try:
                self._prefixes[job.key] = job.prefix()
            except Exception as error:
                self._end(job, error)
                return False
        return True

    def _refill(self, entering: Sequence[Job]) -> None:
        kept = [place for place, job in enumerate(self._rows) if not job.finished]
        self._rows = [self._rows[place] for place in kept]
        if not self._rows and not entering:
            self._cache, self._held, self._prefixes = None, [], {}
            return
        if self._cache is not None:
            self._cache.keep(kept)
        self._cache = self._holding([*self._rows, *entering])
        if entering:
            rows: list[Row] = [(self._held.index(job.key), job.ids) for job in entering]
            hidden = self._cache.refill(range(len(kept)), rows, ROOM)
            self._rows += entering
            self._choose(entering, hidden)

    def _holding(self, jobs: Sequence[Job]) -> RowCache:
        """The cache with the prefixes of these jobs, and no others."""
        wanted = dict.fromkeys(job.key for job in jobs)
        before = self._held
        held = [key for key in before if key in wanted]
        held += [key for key in wanted if key not in held]
        self._held, self._prefixes = held, {key: self._prefixes[key] for key in held}
        if self._cache is None or not self._rows:
            return RowCache(self.model, list(self._prefixes.values()), self.shares)
        if held == before:
            return self._cache
        numbers = {before.index(key): number for number, key in enumerate(held) if key in before}
        return self._cache.over(list(self._prefixes.values()), numbers)

    def _step(self) -> None:
        assert self._cache is not None
        growing = [not job.finished for job in self._rows]
        hidden = self._cache.step([job.last for job in self._rows], growing)
        running = [place for place, grows in enumerate(growing) if grows]
        self._choose([self._rows[place] for place in running], hidden[running])

    def _choose(self, jobs: Sequence[Job], hidden: torch.Tensor) -> None:
        """Choose a token for each job, and deliver it."""
        tokens = next_tokens(logits_of(self.model, hidden), [job.draws for job in jobs])
        for job, token in zip(jobs, tokens, strict=True):
            job.written, job.last = job.written + 1, token
            if token in self.ends:
                self._end(job, "stop")
            else:
                job.deliver(token)
                if job.written == job.max_new_tokens:
                    self._end(job, "length")

    def _end(self, job: Job, event: Event) -> None:
        job.finished = True
        job.deliver(event)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """End all jobs, and begin anew."""
        for job in jobs:
            if not job.finished:
                self._end(job, error)
        self._rows, self._cache, self._held, self._prefixes = [], None, [], {}
