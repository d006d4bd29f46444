"""The index of a bank that stays open, and is mended where it turns out to be damaged or replaced."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from .database import make_anew
from .entries import reconcile
from .folder import BankFolder
from .index import BankIndex

T = TypeVar("T")


class KeptIndex:
    """The index of a folder, brought to what its files are.

    Attributes:
        writable: whether this user may change it.
        rebuilt: why it was made anew from the files; None if it was not.

    Raises:
        MemoryFileError: it cannot be opened; or it is not up to date, or of no use, and cannot be written.
    """

    def __init__(self, folder: BankFolder):
        self._folder = folder
        self.writable = folder.writable
        self._index = BankIndex(folder.index, self.writable)
        self.rebuilt = self._index.remade
        self.use(lambda index: reconcile(index, folder, self.writable))

    def use(self, action: Callable[[BankIndex], T]) -> T:
        """What ``action`` gives; it is called again on a new index if this one turns out to be damaged."""
        if self._index.replaced:
            self._reopen()
        try:
            return action(self._index)
        except sqlite3.DatabaseError as error:
            self.rebuild(f"is damaged ({error})")
            return action(self._index)

    def rebuild(self, reason: str) -> None:
        """Make the index anew from the files.

        Raises:
            MemoryFileError: it cannot be written.
        """
        make_anew(self._folder.index)
        self._reopen()
        reconcile(self._index, self._folder, self.writable)
        self.rebuilt = reason

    def close(self) -> None:
        """Close its file."""
        self._index.close()

    def _reopen(self) -> None:
        self._index.close()
        self._index = BankIndex(self._folder.index, self.writable)
