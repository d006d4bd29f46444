"""A memory's file into which a command writes what it has measured."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import MemoryFileError
from ..memory.memory import Memory
from ..memory.signing import detached_file, is_signed
from ..utils.outputs import Output
from ..utils.terminal import Terminal

SIGNATURE_GONE = "the file has changed, and its signature is gone: sign it again"


class OwnFile:
    """The file of a memory that is measured meanwhile.

    Attributes:
        memory: as the file has it.

    Raises:
        MemoryFileError: it is no memory that can be read.
    """

    def __init__(self, path: Path):
        self.path, self.memory = path, Memory.load(path)
        self._output = Output(path, force=True)

    def check(self) -> None:
        """Refuse, before the work, a file that cannot be written.

        Raises:
            MemoryFileError: naming the cause.
        """
        self._output.check()

    def write(self, measured: Memory, quiet: bool) -> bool:
        """Put ``measured``, the same memory that says more of itself, in the file's place.

        Args:
            quiet: do not say that the signature is gone.

        Returns:
            Whether the file was signed: then the signature is gone.

        Raises:
            MemoryFileError: the file was replaced meanwhile, or cannot be written.
        """
        if Memory.load(self.path).digest != self.memory.digest:
            raise MemoryFileError(f"{self.path} was replaced meanwhile: run the command again")
        signed = is_signed_file(self.path)
        measured.save(self._output)
        if signed and not quiet:
            Terminal().print(SIGNATURE_GONE)
        return signed


def is_signed_file(path: str | os.PathLike) -> bool:
    """Whether there is a memory or a delta at ``path`` that has signatures, in it or beside it."""
    try:
        return os.path.isfile(path) and (is_signed(path) or detached_file(Path(path)).exists())
    except MemoryFileError:
        return False
