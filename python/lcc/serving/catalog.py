"""The memories of a folder by their ids, each checked when it is first asked for and again when its file changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, LCCError, MismatchError
from ..memory.keys import PublicKey, read_public_keys
from ..memory.memory import Memory
from ..memory.signing import detached_file
from ..utils.outputs import MEMORY_SUFFIX
from ..utils.values import is_text, quoted
from .api_errors import ApiError, bad_request
from .memory_files import Stamp, inside, load_memory, stamp_of

# How often a file is read that is replaced meanwhile.
ATTEMPTS = 5


@dataclass(frozen=True)
class Entry:
    """A memory of the folder.

    Attributes:
        path: of its file.
        digest: of all that a question sees of it; see ``served_digest``.
        prefix_ids: tokens before its buffer tokens.
        tokens: prefix and buffer tokens.
        date: what its chat template was told.
        facts: what lists show of it.
    """

    id: str
    path: Path
    stamp: Stamp
    digest: str
    prefix_ids: tuple[int, ...]
    tokens: int
    date: str | None
    facts: dict[str, Any]


def tokens_of(entries: Sequence[Entry]) -> int:
    """One prefix, and the buffer tokens of all entries; 0 without any."""
    prefix = len(entries[0].prefix_ids) if entries else 0
    return prefix + sum(entry.tokens - prefix for entry in entries)


class Catalog:
    """The memories that a server has. Threads may share it.

    Every ``ID.lcc.safetensors`` of the folder is there by its id, from the moment it is written. A file that is
    replaced is another memory from then on.

    Args:
        check: raises MismatchError or InputError if the server's model cannot read a memory.
        trusted: public keys, one of which must have signed a memory that is served. None: none need be signed.

    Raises:
        InputError: there is no such folder, or a key cannot be read.
    """

    def __init__(self, folder: Path, check: Callable[[Memory], None], trusted: Iterable[PublicKey] | None = None):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}: name the one that holds memories")
        self.folder = folder.resolve()
        self._check = check
        self._trusted = None if trusted is None else tuple(read_public_keys(trusted).values())
        self._known: dict[str, Entry] = {}
        self._refused: dict[str, tuple[Stamp, ApiError]] = {}
        # Files that were added by an id of their own, and ids that were deleted.
        self._added: dict[str, Path] = {}
        self._deleted: set[str] = set()
        self._lock = threading.RLock()

    def ids(self) -> list[str]:
        """All ids, sorted, those of damaged files among them; a name that is no text is none."""
        try:
            names = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith(MEMORY_SUFFIX)]
        except OSError as error:
            raise ApiError(503, f"the server's folder cannot be read: {error.strerror}", retry_after=1) from error
        with self._lock:
            found = {name.removesuffix(MEMORY_SUFFIX) for name in names if is_text(name)} - self._deleted
            return sorted((found | self._added.keys()) - {""})

    def entry(self, name: str) -> Entry:
        """The memory of an id.

        Raises:
            ApiError: 404: there is none; 409: it belongs to another model; 503: its file cannot be read now.
        """
        path = self._path(name)
        for _ in range(ATTEMPTS):
            stamp = self._stamp(path)
            if stamp is None:
                self._forget(name)
                raise _unknown(name)
            with self._lock:
                known, (refused_stamp, refused) = self._known.get(name), self._refused.get(name, (None, None))
            if known is not None and (known.stamp, known.path) == (stamp, path):
                return known
            if refused is not None and refused_stamp == stamp:
                raise refused
            outcome = self._read(name, path, stamp)
            if self._stamp(path) == stamp:
                return self._keep(name, stamp, outcome)
        raise ApiError(503, f"the file of the memory {quoted(name)} is being replaced", "memory", retry_after=1)

    def entries(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """The memories of several ids, which one question is to see in this order.

        Raises:
            ApiError: as ``entry``; 400: an id comes twice, or the memories do not go together.
        """
        found = tuple(self.entry(name) for name in names)
        if len(set(names)) < len(names):
            raise bad_request("a memory is named twice", "memories")
        for entry in found[1:]:
            if entry.prefix_ids != found[0].prefix_ids:
                raise bad_request(
                    f"{entry.id} stands behind another prefix than {found[0].id}: memories that are read together are "
                    "compiled with the same chat template, on the same date if that writes the date",
                    "memories",
                )
        return found

    def memory(self, entry: Entry) -> Memory:
        """The memory of an entry, read from its file.

        Raises:
            ApiError: 503: the file is another one by now, or cannot be read.
        """
        return load_memory(entry.path, entry.digest)[0]

    def add(self, name: str, path: str) -> Entry:
        """Give a file of the folder an id of its own.

        Args:
            path: inside the folder.

        Raises:
            ApiError: 400: the path leads out of the folder, or the id is none; 404: there is no file; 409: the id is
                taken, the file is damaged, or belongs to another model.
        """
        if not name or "/" in name or not name.isprintable():
            raise bad_request(f"id is {quoted(name)}; it must be a name in one line, without slashes", "id")
        target = inside(self.folder, path)
        if not os.path.isfile(target):
            raise ApiError(404, f"the server's folder has no file {quoted(path)}", "path")
        with self._lock:
            taken = self._added.get(name, self._own(name))
            if taken != target and name in self.ids():
                raise ApiError(409, f"the id {quoted(name)} is another memory's: delete that first", "id")
            deleted, before = name in self._deleted, self._added.get(name)
            self._deleted.discard(name)
            self._added[name] = target
        try:
            return self.entry(name)
        except ApiError as error:
            with self._lock:
                self._added.pop(name, None)
                if before is not None:
                    self._added[name] = before
                if deleted:
                    self._deleted.add(name)
            raise ApiError(409 if error.status == 503 else error.status, str(error), "path") from error

    def remove(self, name: str) -> None:
        """Forget an id until it is added again, or the server starts again; the file stays.

        Raises:
            ApiError: 404: there is none.
        """
        if name not in self.ids():
            raise _unknown(name)
        with self._lock:
            self._added.pop(name, None)
            self._forget(name)
            self._deleted.add(name)

    def _forget(self, name: str) -> None:
        """Nothing is kept of a file that is gone."""
        with self._lock:
            self._known.pop(name, None)
            self._refused.pop(name, None)

    def _own(self, name: str) -> Path:
        return self.folder / (name + MEMORY_SUFFIX)

    def _path(self, name: str) -> Path:
        with self._lock:
            if name in self._added:
                return self._added[name]
            if name in self._deleted or "/" in name or "\0" in name:
                raise _unknown(name)
            return self._own(name)

    def _stamp(self, path: Path) -> Stamp | None:
        """That of a file, and of its detached signature where one may be needed."""
        stamp = stamp_of(path)
        if stamp is None or self._trusted is None:
            return stamp
        return stamp + (stamp_of(detached_file(path)) or ())

    def _read(self, name: str, path: Path, stamp: Stamp) -> Entry | ApiError:
        try:
            memory, digest = load_memory(path, trusted=self._trusted)
            self._check(memory)
        except ApiError as error:
            return error
        except (InputError, MismatchError) as error:
            return ApiError(409, f"the memory {quoted(name)} cannot be served: {error}", "memory")
        except LCCError as error:
            return ApiError(503, f"the memory {quoted(name)} cannot be served: {error}", "memory", retry_after=1)
        tokens = len(memory.prefix_ids) + memory.buffer_tokens
        return Entry(name, path, stamp, digest, memory.prefix_ids, tokens, memory.date, _facts(memory))

    def _keep(self, name: str, stamp: Stamp, outcome: Entry | ApiError) -> Entry:
        with self._lock:
            self._forget(name)
            if isinstance(outcome, ApiError):
                self._refused[name] = (stamp, outcome)
                raise outcome
            self._known[name] = outcome
            return outcome


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"there is no memory {quoted(name)}; GET /v1/memories lists them", "memory")


def _facts(memory: Memory) -> dict[str, Any]:
    questions = (memory.certificate or {}).get("questions") or {}
    return {
        "buffer_tokens": memory.buffer_tokens,
        "source_tokens": memory.source_tokens,
        "ratio": memory.ratio,
        "dtype": memory.dtype,
        "compiler": memory.compiler["name"],
        "kept": questions.get("kept"),
    }
