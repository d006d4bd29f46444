"""What was put before a model, kept for the next question until there is too much of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

# 256 MiB.
BYTES = 1 << 28


class Sized(Protocol):
    """Something that takes memory."""

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        ...


Item = TypeVar("Item", bound=Sized)


class AttachedPool(Generic[Item]):
    """Rotated K and V, or adapters, by key; what was not wanted for the longest time goes first.

    Several threads may use one pool.

    Args:
        limit: bytes that are kept, at least of the last one.
    """

    def __init__(self, limit: int = BYTES):
        self._limit, self._kept = limit, OrderedDict[Hashable, Item]()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Item]) -> Item:
        """What ``make`` gave for ``key``; raises what ``make`` raises."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > 1 and self.nbytes > self._limit:
                self._kept.popitem(last=False)
        return made

    def forget(self) -> None:
        """Keep nothing: what the keys stand for has changed."""
        with self._lock:
            self._kept.clear()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(item.nbytes for item in self._kept.values())
