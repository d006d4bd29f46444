"""The files of a bank: ``memories/KEY.lcc.safetensors``, ``texts/KEY.txt``, ``bank.sqlite``, ``router.safetensors``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import InputError, MemoryFileError
from ..memory.store import FileStore, checkpoint_beside
from ..utils.hashing import text_digest
from ..utils.outputs import MEMORY_SUFFIX, Output, make_folder, os_errors, remove_partial, write_bytes
from ..utils.resumable import remove_checkpoint
from ..utils.utf8 import check_text
from ..utils.values import is_text, quoted
from .index import Files

TEXT_SUFFIX = ".txt"
# Bytes of a key in UTF-8: with its suffixes it is a file name.
LONGEST_KEY = 200
# What file systems and shells give a meaning to.
RESERVED = frozenset('/\\:*?"<>|')


class BankFolder:
    """The folder of a bank.

    Attributes:
        store: its memories.
    """

    def __init__(self, path: Path):
        self.path = path
        self.memories, self.texts = path / "memories", path / "texts"
        self.index, self.router = path / "bank.sqlite", path / "router.safetensors"
        self.store = FileStore(lambda key: Output.of(self.memory(key)))

    def make(self) -> None:
        """Make the folders that are missing.

        Raises:
            MemoryFileError: they cannot be made.
        """
        make_folder(self.memories)
        make_folder(self.texts)

    @property
    def writable(self) -> bool:
        """Whether this user may change the index."""
        written = [self.path, *([self.index] if self.index.exists() else [])]
        return all(os.access(path, os.W_OK) for path in written)

    def memory(self, key: str) -> Path:
        """The file of a memory."""
        return self.memories / (key + MEMORY_SUFFIX)

    def text(self, key: str) -> Path:
        """The file of a memory's text."""
        return self.texts / (key + TEXT_SUFFIX)

    def files(self, key: str) -> Files | None:
        """The state of a memory's files; None if it has none."""
        text = _stamp(self.text(key)) or (None, None)
        memory = _stamp(self.memory(key))
        return memory and Files(*memory, *text)

    def scan(self) -> dict[str, Files]:
        """The state of all memories' files, by key. Files whose names are no keys are left out."""
        texts = dict(_entries(self.texts, TEXT_SUFFIX))
        return {
            key: Files(*stamp, *texts.get(key, (None, None)))
            for key, stamp in _entries(self.memories, MEMORY_SUFFIX)
            if is_key(key)
        }

    def misnamed(self) -> list[Path]:
        """Memories' files whose names are no keys."""
        return [self.memory(key) for key, _ in _entries(self.memories, MEMORY_SUFFIX) if not is_key(key)]

    def texts_alone(self) -> list[Path]:
        """Texts without a memory: one that could not be compiled, or is not compiled yet."""
        memories = {key for key, _ in _entries(self.memories, MEMORY_SUFFIX)}
        return [self.text(key) for key, _ in sorted(_entries(self.texts, TEXT_SUFFIX)) if key not in memories]

    def read_text(self, key: str, digest: str) -> str | None:
        """The text of the memory whose ``source_sha256`` is ``digest``; None if there is none, or another one.

        Raises:
            MemoryFileError: it cannot be read.
        """
        try:
            text = self.text(key).read_bytes().decode()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        except OSError as error:
            raise MemoryFileError(f"cannot read {self.text(key)}: {error.strerror or error}") from error
        return text if text_digest(text) == digest else None

    def write_text(self, key: str, text: str) -> None:
        """Keep a text.

        Raises:
            InputError: it cannot be encoded.
            MemoryFileError: it cannot be written.
        """
        write_bytes(self.text(key), check_text(text, f"the text of {key}").encode())
        remove_partial(self.text(key))

    def remove_text(self, key: str) -> None:
        """Delete a text, if it is there.

        Raises:
            MemoryFileError: it cannot be deleted.
        """
        _unlink(self.text(key))
        remove_partial(self.text(key))

    def remove(self, key: str) -> None:
        """Delete all files of a memory that is claimed, its own last: a kill leaves it there to be removed again.

        Raises:
            MemoryFileError: they cannot be deleted.
        """
        self.remove_text(key)
        remove_checkpoint(checkpoint_beside(self.memory(key)))
        remove_partial(self.memory(key))
        _unlink(self.memory(key))


def is_key(key: str) -> bool:
    """Whether a name is a key: see ``check_key``."""
    fits = is_text(key) and 0 < len(key.encode()) <= LONGEST_KEY and key.isprintable() and key == key.strip()
    return fits and not key.startswith((".", "-")) and RESERVED.isdisjoint(key)


def check_key(key: str) -> None:
    """Refuse what cannot be the name of a memory's files everywhere.

    Raises:
        InputError: saying what a key may be.
    """
    if not isinstance(key, str) or not is_key(key):
        raise InputError(
            f"{quoted(key)!r} cannot name a memory of a bank: take at most {LONGEST_KEY} bytes of printable characters "
            f"without {' '.join(sorted(RESERVED))}, with no space at an end, and no dot or dash at the start"
        )


def key_of(path: str | os.PathLike) -> str:
    """The key of a document's or a memory's file: its name without the suffix.

    Raises:
        InputError: as ``check_key``.
    """
    name = os.path.basename(path)
    key = name.removesuffix(MEMORY_SUFFIX) if name.endswith(MEMORY_SUFFIX) else Path(name).stem
    check_key(key)
    return key


def _entries(folder: Path, suffix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """The names without ``suffix``, and the states, of the files of a folder that end in it; hidden ones are no part.

    Raises:
        MemoryFileError: the folder cannot be read.
    """
    with os_errors(f"cannot read the folder {folder}"), suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix) and not entry.name.startswith("."):
                # Another process may have removed it meanwhile.
                with suppress(FileNotFoundError):
                    state = entry.stat()
                    yield entry.name.removesuffix(suffix), (state.st_size, state.st_mtime_ns)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MemoryFileError(f"cannot read {path}: {error.strerror or error}") from error
    return state.st_size, state.st_mtime_ns


def _unlink(path: Path) -> None:
    with os_errors(f"cannot delete {path}"):
        path.unlink(missing_ok=True)
