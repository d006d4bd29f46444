"""Where memories are kept: one way to claim a memory, to go on after a kill, and to keep what was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from filelock import FileLock, Timeout

from ..errors import MemoryFileError
from ..utils.distributed import ALONE, Ranks
from ..utils.outputs import Output, check_folder, is_file, os_errors, remove_partial
from ..utils.resumable import remove_checkpoint
from .memory import Memory


@dataclass(frozen=True)
class Claim:
    """The right to make a memory, held by one process.

    Attributes:
        checkpoint: the folder where the unfinished memory's state is kept.
    """

    checkpoint: Path


class MemoryStore(Protocol):
    """Memories by key."""

    def get(self, key: str) -> Memory | None:
        """The memory of ``key``. None: there is none, or none that can be read."""
        ...

    def put(self, key: str, memory: Memory) -> None:
        """Keep ``memory``, and forget the state that it was made from."""
        ...

    def claim(self, key: str, wait: bool = False) -> AbstractContextManager[Claim | None]:
        """The claim of ``key`` inside the block. None: another process has it, and ``wait`` is False."""
        ...


class FileStore:
    """A store in files. A lock file beside a memory is its claim: the system drops it when its process dies.

    Args:
        output: the file of a key.
        ranks: the processes that make a memory together: rank 0 touches the files.
    """

    def __init__(self, output: Callable[[str], Output], ranks: Ranks = ALONE):
        self._output, self._ranks = output, ranks

    def get(self, key: str) -> Memory | None:
        """The memory of ``key``, if its file holds one.

        Raises:
            MemoryFileError: something is there that is no file.
        """
        path = self._output(key).path
        if not is_file(path):
            return None
        try:
            return Memory.load(path)
        except MemoryFileError:
            return None

    def put(self, key: str, memory: Memory) -> None:
        """Write the memory's file, then remove the checkpoint beside it.

        Raises:
            MemoryFileError, MismatchError: the file cannot be written, or must not be replaced.
        """
        output = self._output(key)
        memory.save(output)
        remove_checkpoint(checkpoint_beside(output))
        remove_partial(output)

    @contextmanager
    def claim(self, key: str, wait: bool = False) -> Iterator[Claim | None]:
        """Lock the file of ``key`` inside the block.

        Raises:
            MemoryFileError: the folder is missing or read-only, or something else has the name of the lock or of the
                checkpoint.
        """
        output = self._output(key)
        remedy = "move it away, or name another memory file"
        file = replace(output, path=_beside(output, ".lock"), force=False, ours=_empty, remedy=remedy)
        lock = FileLock(file)

        def acquire() -> bool:
            file.check()
            check_folder(checkpoint_beside(output))
            with os_errors(f"cannot write {file}"):
                try:
                    lock.acquire(blocking=wait)
                except Timeout:
                    return False
            return True

        claimed = self._ranks.from_main(acquire)
        try:
            yield Claim(checkpoint_beside(output)) if claimed else None
        finally:
            if lock.is_locked:
                with os_errors(f"cannot remove {file}"):
                    file.path.unlink(missing_ok=True)
                    lock.release()


def get_or_make(
    store: MemoryStore,
    key: str,
    make: Callable[[Claim], Memory],
    accepts: Callable[[Memory | None], bool] = lambda memory: memory is not None,
    ranks: Ranks = ALONE,
    wait: bool = False,
) -> Literal["compiled", "skipped", "locked"]:
    """See to it that ``store`` holds the memory of ``key``.

    Args:
        make: called if there is none, with the claim that it goes on from.
        accepts: whether the stored memory, if there is one, is the one that is wanted.
        wait: wait for another process that makes it.

    Returns:
        ``skipped``: it was there. ``locked``: another process is making it.
    """
    with store.claim(key, wait) as claim:
        if claim is None:
            return "locked"
        if ranks.from_main(lambda: accepts(store.get(key))):
            return "skipped"
        memory = make(claim)
        ranks.from_main(lambda: store.put(key, memory))
    return "compiled"


def checkpoint_beside(output: str | os.PathLike) -> Path:
    """Where the state of an unfinished memory ``output`` is kept."""
    return _beside(output, ".checkpoint")


def _beside(output: str | os.PathLike, suffix: str) -> Path:
    return Path(os.fspath(output) + suffix)


def _empty(path: Path) -> None:
    """The rule of a lock, which is an empty file."""
    if path.stat().st_size:
        raise MemoryFileError(f"{path} has the name of a lock and is none")
