"""Progress on the terminal: a bar with loss, held-out KL and the time left."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


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
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._tasks: dict[str, TaskID] = {}
        self._current = ""

    def __enter__(self) -> Reporter:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

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
