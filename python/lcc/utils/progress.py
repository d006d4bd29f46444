"""Progress of long work, on stderr and in a log file: what is done, of how much, with loss, held-out KL and time left.

A terminal gets bars. Anything else gets plain lines: see ``log_lines``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from ..errors import MemoryFileError
from .log_lines import LogLines, Stage
from .terminal import Terminal, shown

# Called with (name of the work, done, total), and with what else there is to say of it.
Report = Callable[..., None]
# What is gone through piece by piece, the outermost first.
SERIES = DOCUMENTS, RATIOS, SECTIONS = "documents", "ratios", "sections"


class Display(Protocol):
    """Where stages of work are shown. Those that are not named any more are over."""

    def show(self, stages: dict[str, Stage], moved: str) -> None:
        """The stages as they stand; ``moved`` is the one that did."""


class Bars:
    """Bars on a terminal."""

    def __init__(self, terminal: Terminal):
        self._progress = Progress(
            TextColumn("{task.description:<17}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, stages: dict[str, Stage], moved: str) -> None:
        """One bar a stage."""
        for name in self._tasks.keys() - stages.keys():
            self._progress.remove_task(self._tasks.pop(name))
        for name, stage in stages.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=stage.total, completed=stage.done, figures="")
            figures = shown(stage.figures)
            self._progress.update(self._tasks[name], completed=stage.done, total=stage.total, figures=figures)


class Reporter:
    """Shows what is being done on stderr (stdout is for results).

    Args:
        enabled: False: stderr stays silent.
        log_file: plain lines are appended to it as well.

    Raises:
        MemoryFileError: on entry, when ``log_file`` cannot be written.
    """

    def __init__(self, enabled: bool = True, log_file: str | os.PathLike | None = None):
        self._enabled, self._log_file = enabled, log_file
        self._open = ExitStack()
        self._displays: list[Display] = []
        self._stages: dict[str, Stage] = {}
        self._current = ""

    def __enter__(self) -> Reporter:
        if self._log_file is not None:
            try:
                file = self._open.enter_context(open(self._log_file, "a", encoding="utf-8"))
            except OSError as error:
                raise MemoryFileError(f"cannot write the log file {self._log_file}: {error.strerror}") from error
            self._displays.append(self._open.enter_context(LogLines(file)))
        if self._enabled:
            terminal = Terminal(stderr=True)
            bars = terminal.is_terminal and not terminal.is_dumb_terminal
            self._displays.append(
                self._open.enter_context(Bars(terminal)) if bars else self._open.enter_context(LogLines(terminal.file))
            )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._displays.clear()
        self._open.close()

    def document(self, name: str, done: int, total: int) -> None:
        """Go on to the next of several documents."""
        self._next(DOCUMENTS, name, done, total)

    def ratio(self, name: str, done: int, total: int) -> None:
        """Go on to the next of several ratios of a document."""
        self._next(RATIOS, name, done, total)

    def section(self, name: str, done: int, total: int) -> None:
        """Go on to the next of several sections of a text."""
        self._next(SECTIONS, name, done, total)

    def _next(self, series: str, name: str, done: int, total: int) -> None:
        """Go on to the next of ``series``: its own stages replace those of the one before."""
        outer = SERIES[: SERIES.index(series) + 1]
        self._stages = {what: stage for what, stage in self._stages.items() if what in outer}
        self._update(series, done, total, name)

    def start(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work, ``done`` of which is there already."""
        self._current = what
        self._update(what, done, total)

    def count(self, what: str, done: int, total: int, figures: str | None = None) -> None:
        """So much of ``what`` is done."""
        self._update(what, done, total, figures)

    def step(self, done: int, loss: float, held_out_kl: float) -> None:
        """One optimiser step is done."""
        figures = f"loss {loss:.4f}"
        if math.isfinite(held_out_kl):
            figures += f" · held-out KL {held_out_kl:.4f}"
        self._update(self._current, done, self._stages[self._current].total, figures)

    def _update(self, what: str, done: int, total: int, figures: str | None = None) -> None:
        stage = self._stages.get(what) or Stage(done, what in SERIES)
        self._stages[what] = stage.at(done, total, figures)
        for display in self._displays:
            display.show(self._stages, what)


@contextmanager
def reporting(progress: bool | Reporter) -> Iterator[Reporter]:
    """The caller's reporter, as it stands, or one for the block."""
    if isinstance(progress, Reporter):
        yield progress
    else:
        with Reporter(progress) as reporter:
            yield reporter
