"""Memories' files as a server sees them: read, checked against what they were, and told apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import MemoryFileError, MismatchError
from ..memory.keys import PublicKey
from ..memory.memory import Memory
from ..utils.hashing import json_digest
from ..utils.values import quoted
from .api_errors import ApiError, bad_request

Stamp = tuple[int, ...]


def load_memory(
    path: Path, digest: str | None = None, trusted: Iterable[PublicKey] | None = None
) -> tuple[Memory, str]:
    """A memory that can be served, and its ``served_digest``.

    Args:
        digest: that it must have.
        trusted: as of ``Memory.load``.

    Raises:
        ApiError: 503: the file cannot be read, is not signed though it must be, or holds another memory.
        MismatchError: it is an adapter, or no trusted key signed it.
    """
    try:
        memory = Memory.load(path, trusted)
    except (MemoryFileError, MismatchError) as error:
        said = str(error).replace(str(path), path.name)
        if isinstance(error, MismatchError):
            raise MismatchError(said) from error
        raise ApiError(503, f"a memory cannot be read now: {said}", "memory", retry_after=1) from error
    if not memory.buffer_tokens:
        raise MismatchError("it is an adapter, which changes the model: ask it with lcc.ask")
    found = served_digest(memory)
    if digest not in (None, found):
        raise ApiError(503, f"{path.name} was replaced a moment ago: ask again", "memory", retry_after=1)
    return memory, found


def served_digest(memory: Memory) -> str:
    """Of all that a question sees of a memory: its tensors, where they stand, and the model that reads them."""
    return json_digest([memory.digest, list(memory.prefix_ids), memory.rope, memory.fingerprint])


def inside(folder: Path, path: str) -> Path:
    """A path of the folder.

    Raises:
        ApiError: 400: it leads out of the folder, or is no path.
    """
    try:
        target = (folder / path).resolve()
    except (OSError, ValueError) as error:
        raise bad_request(f"path is {quoted(path)}; it must be one inside the server's folder", "path") from error
    if not target.is_relative_to(folder) or target == folder:
        raise bad_request(f"path is {quoted(path)}; it must be one inside the server's folder", "path")
    return target


def stamp_of(path: Path) -> Stamp | None:
    """Another one whenever a file is written or replaced; None of no file."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    # The last one cannot be set: a copy in place that keeps its source's times is another file too.
    return state.st_mtime_ns, state.st_size, state.st_ino, state.st_ctime_ns
