"""Progress on the terminal: a bar with loss, held-out KL and the time left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from .terminal import Terminal, shown

# Called with (name of the work, done, total).
Report = Callable[[str, int, int], None]
# What is gone through piece by piece, the outermost first.
SERIES = DOCUMENTS, RATIOS = "documents", "ratios"


class Reporter:
    """Shows on stderr what is being done (stdout is for results); silent when ``enabled`` is False."""

    def __init__(self, enabled: bool = True):
        self._progress = Progress(
            TextColumn("{task.description:<17}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Terminal(stderr=True),
            disable=not enabled,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current = ""

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def document(self, name: str, done: int, total: int) -> None:
        """Go on to the next of several documents."""
        self._next(DOCUMENTS, name, done, total)

    def ratio(self, name: str, done: int, total: int) -> None:
        """Go on to the next of several ratios of a document."""
        self._next(RATIOS, name, done, total)

    def _next(self, series: str, name: str, done: int, total: int) -> None:
        """Go on to the next of ``series``: its own bars replace those of the one before."""
        outer = SERIES[: SERIES.index(series) + 1]
        for what in [what for what in self._tasks if what not in outer]:
            self._progress.remove_task(self._tasks.pop(what))
        self.count(series, done, total)
        self._progress.update(self._tasks[series], figures=shown(name))

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work, ``done`` of which is there already."""
        self._current = what
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done, figures="")

    def count(self, what: str, done: int, total: int) -> None:
        """So much of ``what`` is done."""
        self.start(what, total)
        self._progress.update(self._tasks[what], completed=done, total=total)

    def step(self, done: int, loss: float, held_out_kl: float) -> None:
        """One optimiser step is done."""
        figures = f"loss {loss:.4f}"
        if math.isfinite(held_out_kl):
            figures += f" · held-out KL {held_out_kl:.4f}"
        self._progress.update(self._tasks[self._current], completed=done, figures=figures)


@contextmanager
def reporting(progress: bool | Reporter) -> Iterator[Reporter]:
    """The caller's reporter, as it stands, or one for the block."""
    if isinstance(progress, Reporter):
        yield progress
    else:
        with Reporter(progress) as reporter:
            yield reporter
