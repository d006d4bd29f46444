"""Plain lines about long work, for whatever is no terminal.

A line comes when a stage begins, when it is done, and every ``EVERY`` seconds in between, also when nothing has moved.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import IO

from .terminal import plain

# Seconds between two lines of a stage.
EVERY = 30.0


@dataclass(frozen=True)
class Stage:
    """A piece of work.

    Attributes:
        first: what was done already when it began.
        series: other stages run inside it, once for each document or ratio.
        figures: what else there is to say of it.
        began: seconds, on the monotonic clock.
    """

    first: int
    series: bool = False
    done: int = 0
    total: int = 0
    figures: str = ""
    began: float = field(default_factory=time.monotonic)

    def at(self, done: int, total: int, figures: str | None = None) -> Stage:
        """The same stage later."""
        return replace(self, done=done, total=total, figures=self.figures if figures is None else figures)

    @property
    def seconds_left(self) -> float | None:
        """By what it took so far; None while that says nothing."""
        here = self.done - self.first
        if here <= 0 or self.done >= self.total:
            return None
        return (time.monotonic() - self.began) / here * (self.total - self.done)


class LogLines:
    """Lines about stages, written to ``stream``."""

    def __init__(self, stream: IO[str], every: float = EVERY):
        self._stream, self._every = stream, every
        self._lock, self._over = threading.Lock(), threading.Event()
        self._stages: dict[str, Stage] = {}
        self._moved, self._line, self._written = "", "", 0.0
        self._clock = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> LogLines:
        self._clock.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._clock.join()

    def show(self, stages: dict[str, Stage], moved: str) -> None:
        """Write a line about the stage ``moved``, if one is due.

        Raises:
            OSError: the stream cannot be written.
        """
        with self._lock:
            due = time.monotonic() - self._written >= self._every
            changed = moved != self._moved or stages[moved].done >= stages[moved].total
            self._stages, self._moved = dict(stages), moved
            if due or changed:
                self._write()

    def _watch(self) -> None:
        while not self._over.wait(self._every / 10):
            # Whoever moves the work on is told that the stream is gone.
            with self._lock, suppress(OSError, ValueError):
                if self._stages and time.monotonic() - self._written >= self._every:
                    self._write(again=True)

    def _write(self, again: bool = False) -> None:
        stage = self._stages[self._moved]
        shown = {name: of for name, of in self._stages.items() if of.series and of.done < of.total}
        counts = [f"{name} {of.done}/{of.total} {of.figures}".rstrip() for name, of in shown.items()]
        if self._moved not in shown:
            counts += [f"{self._moved} {stage.done}/{stage.total}", *filter(None, [stage.figures])]
        if stage.seconds_left is not None:
            counts.append(f"{_duration(stage.seconds_left)} left")
        line = plain(" · ".join(counts))
        if again or line != self._line:
            self._stream.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            self._stream.flush()
        self._line, self._written = line, time.monotonic()


def _duration(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
