"""Rows that a second call completes: what is in the results file is not measured again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from .results_file import Row, load_rows, write_rows

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Sweep(Generic[Key]):
    """A results file that is written after each measurement.

    Attributes:
        path: the file. It is read again before each write: rows that another call has added stay.
        key: tells the rows of one measurement from all others.
        order: sorts the rows by their keys. None: in the order in which they were measured.
        kind: what ``benchmarks.report`` knows the file by, if it reports such files.
    """

    path: Path
    key: Callable[[Row], Key]
    order: Callable[[Key], Any] | None = None
    kind: str | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows of the file."""
        return load_rows(self.path)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """The ``keys`` that have no row, in their order."""
        done = {self.key(row) for row in self.rows}
        return [key for key in keys if key not in done]

    def add(self, row: Row) -> None:
        """Put ``row`` in place of the one of its key, or behind all others."""
        self.replace(self.key(row), [row])

    def replace(self, key: Key, rows: Iterable[Row]) -> None:
        """Put ``rows`` in place of all those of ``key``."""
        kept = [row for row in self.rows if self.key(row) != key] + list(rows)
        if self.order:
            order = self.order
            kept.sort(key=lambda row: order(self.key(row)))
        write_rows(self.path, kept, **({"kind": self.kind} if self.kind else {}))
