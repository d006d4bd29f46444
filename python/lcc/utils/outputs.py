"""Where files are written: to a new path, or in place of what this package wrote; of another file only with ``force``.

Nothing is ever written in place of what it is made from, nor of anything but a file, nor through a link.
"""

from __future__ import annotations

import glob
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import MemoryFileError, MismatchError

PARTIAL = ".partial"
MEMORY_SUFFIX = ".lcc.safetensors"
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
# Raises MemoryFileError or MismatchError if the file at a path is not one to replace.
Rule = Callable[[Path], None]


def nothing_there(path: Path) -> None:
    """The rule of an output that replaces no file.

    Raises:
        MemoryFileError: always.
    """
    raise MemoryFileError(f"{path} is there already")


@dataclass(frozen=True)
class Output:
    """A file to write. It is a path, and whatever writes to it checks it first and once more before the replacement.

    Attributes:
        inputs: what the file is made from, and is never replaced.
        force: any file may be replaced.
        ours: without ``force``, which file may be.
        remedy: what to do about another one.
    """

    path: Path
    inputs: tuple[Path, ...] = ()
    force: bool = False
    ours: Rule = nothing_there
    remedy: str = "name another file, or replace this one with --force (force=True)"

    @classmethod
    def of(cls, path: str | os.PathLike) -> Output:
        """An output as it is; a plain path is a file that the caller wants replaced."""
        return path if isinstance(path, Output) else cls(Path(path), force=True)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        """Refuse what must not be replaced.

        Raises:
            MemoryFileError: the folder is missing or read-only; there is a link, a device, a folder, an input, or a
                file that is not ours.
            MismatchError: there is a file of ours about something else.
        """
        folder = self.path.parent
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise MemoryFileError(f"cannot write to the folder {folder}: it is missing or read-only")
        if not is_file(self.path):
            return
        for source in self.inputs:
            if _same(source, self.path):
                raise MemoryFileError(f"{self.path} is read by this very command, as {source}: name another file")
        if self.force:
            return
        try:
            self.ours(self.path)
        except (FileNotFoundError, MemoryFileError, MismatchError) as error:
            if not is_file(self.path):  # Another process removed it meanwhile.
                return
            raise type(error)(f"{error}; {self.remedy}") from error


def input_paths(*sources: object) -> tuple[Path, ...]:
    """Those of ``sources`` that may name files, as ``Output.inputs``; ``-`` is what standard input reads."""
    names = [str(source) for source in sources if isinstance(source, (str, os.PathLike))]
    return tuple(Path("/dev/stdin" if name == "-" else name) for name in names)


def model_paths(model: str | None) -> tuple[Path, ...]:
    """A model's file, or the files of its folder, as ``Output.inputs``; none of a hub name.

    Memories in the folder are no part of the model.
    """
    if model is None or not os.path.exists(model):
        return ()
    if not os.path.isdir(model):
        return (Path(model),)
    return tuple(path for path in Path(model).iterdir() if path.is_file() and not path.name.endswith(MEMORY_SUFFIX))


def is_file(path: Path) -> bool:
    """Whether there is a file at ``path``, or nothing.

    Raises:
        MemoryFileError: there is a link, or something that is no file.
    """
    kind = _kind(path)
    if kind not in (None, stat.S_IFREG):
        raise MemoryFileError(f"{path} is {KINDS.get(kind, 'no file')}: name a file")
    return kind is not None


def check_folder(folder: Path) -> None:
    """Refuse a folder that is there and cannot be used.

    Raises:
        MemoryFileError: it is a link or no folder, or it may not be read and written.
    """
    kind = _kind(folder)
    if kind not in (None, stat.S_IFDIR):
        raise MemoryFileError(f"cannot make the folder {folder}: {KINDS.get(kind, 'something')} has that name")
    if kind is not None and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise MemoryFileError(
            f"cannot use the folder {folder}: this user may not read and write it; change its mode, delete it, or name "
            "another"
        )


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, if they are missing.

    Raises:
        MemoryFileError: as ``check_folder``, or the folder cannot be made.
    """
    check_folder(folder)
    with os_errors(f"cannot make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)


def names_folder(given: str) -> bool:
    """Whether ``given`` names a folder: one that is there, or one to make, which a slash at its end says."""
    return bool(given) and (os.path.basename(given) in ("", os.curdir, os.pardir) or os.path.isdir(given))


def place(given: str, name: str) -> Path:
    """The file that ``given`` names; of a folder, which is made if it is missing, the file ``name`` in it.

    Raises:
        MemoryFileError: the folder is a link, or cannot be made.
    """
    if not names_folder(given):
        return Path(given)
    make_folder(Path(given))
    return Path(given, name)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Put ``content`` in place of the file at ``path``, at once.

    Raises:
        MemoryFileError, MismatchError: as ``replacing`` does.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    Args:
        path: an ``Output``, or the path of a file that may be replaced whatever it is.

    Raises:
        MemoryFileError: the file cannot be written, or must not be replaced; an older one stays as it was.
        MismatchError: as ``Output.check``.
    """
    output, temporary = Output.of(path), None
    output.check()
    try:
        target = output.path
        beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
        beside.touch(exist_ok=False)
        temporary, mode = beside, stat.S_IMODE(beside.stat().st_mode)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # safetensors makes the file anew, readable by its owner alone.
        temporary.chmod(mode)
        output.check()
        temporary.replace(target)
    except OSError as error:
        raise MemoryFileError(f"cannot write {output}: {error.strerror or error}; nothing was changed there") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_partial(path: str | os.PathLike) -> None:
    """Delete what writers of ``path`` that were killed have left beside it; nobody may be writing it now."""
    target = Path(path)
    for left in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}{PARTIAL}"):
        # Another user's leavings do no harm.
        with suppress(PermissionError):
            left.unlink(missing_ok=True)


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turn the operating system's refusals inside the block into this package's.

    Raises:
        MemoryFileError: beginning with ``what``.
    """
    try:
        yield
    except OSError as error:
        raise MemoryFileError(f"{what}: {error.strerror or error}") from error


def _kind(path: Path) -> int | None:
    """The type of what is at ``path``, as ``stat.S_IFMT`` tells it; None for nothing.

    Raises:
        MemoryFileError: it is a link, or it cannot be told.
    """
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise MemoryFileError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error
    if kind == stat.S_IFLNK:
        raise MemoryFileError(f"{path} is a link to {os.path.realpath(path)}: name that path itself")
    return kind


def _same(source: Path, path: Path) -> bool:
    try:
        return os.path.samefile(source, path)
    except OSError:
        return False
