"""What was put before a model, kept for the next question: what was asked last is at hand without being made again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from ..utils.values import check_count

# 256 MiB.
LIMIT = 1 << 28


class Sized(Protocol):
    """Something that takes memory, such as rotated K and V, or an adapter."""

    @property
    def nbytes(self) -> int:
        """How many bytes."""
        ...


Item = TypeVar("Item", bound=Sized)


class AttachedPool(Generic[Item]):
    """Attached memories by key; the least recently used ones go when all take too much.

    Threads may share it. Of several that want the same memory, one attaches it and the others wait; other memories are
    attached meanwhile.

    Args:
        limit: bytes that are kept at most.

    Raises:
        InputError: the limit is below 1.
    """

    def __init__(self, limit: int = LIMIT):
        check_count("limit", limit)
        self.limit = limit
        # The least recently used first.
        self._kept: OrderedDict[Hashable, Item] = OrderedDict()
        self._attaching: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, attach: Callable[[], Item]) -> Item:
        """What ``attach`` gave for ``key``; raises what ``attach`` raises, and keeps nothing then.

        What takes more than the limit by itself is attached each time.

        Args:
            key: the same key stands for the same memory.
        """
        with self._lock:
            if key in self._kept:
                return self._used(key)
            attaching = self._attaching.setdefault(key, threading.Lock())
        with attaching:
            with self._lock:
                if key in self._kept:
                    return self._used(key)
            try:
                item = attach()
                self._keep(key, item)
                return item
            finally:
                with self._lock:
                    self._attaching.pop(key, None)

    def drop(self, key: Hashable) -> None:
        """Let a memory go; nothing happens if it is not at hand."""
        with self._lock:
            self._kept.pop(key, None)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return self._nbytes()

    def __contains__(self, key: Hashable) -> bool:
        """Whether a memory is at hand."""
        with self._lock:
            return key in self._kept

    def _used(self, key: Hashable) -> Item:
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: Hashable, item: Item) -> None:
        if item.nbytes > self.limit:
            return
        with self._lock:
            self._kept[key] = item
            while self._nbytes() > self.limit:
                self._kept.popitem(last=False)

    def _nbytes(self) -> int:
        return sum(item.nbytes for item in self._kept.values())
