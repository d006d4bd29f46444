"""Files from which a killed run goes on: what belongs to another run, or is damaged, is refused or started afresh."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import MemoryFileError, MismatchError
from .distributed import ALONE, Ranks
from .outputs import PARTIAL, check_folder, is_file, os_errors
from .tensor_files import load_metadata, load_tensors, save_tensors
from .terminal import first_line
from .values import check, is_date

# Names of the files in a checkpoint folder, and of the folders in it that are checkpoints themselves.
STATE_FILE, DATA_FILE, PLAN_FILE = "state", "surrogate", "plan"
PART = "ratio-"
# What stands between the name of a data file and that of a part of it.
DATA_PART = "-part-"
_DATA = f"{DATA_FILE}(-[0-9a-f]{{16}})?({DATA_PART}[0-9a-f]{{16}})?"
_FILE = re.compile(f"({STATE_FILE}|{PLAN_FILE}|{_DATA})\\.safetensors")
_PARTIAL_FILE = re.compile(f"\\.{_FILE.pattern}\\.[0-9a-f]{{8}}\\{PARTIAL}")
# Their metadata always has it: what must be the same for a run to go on from the file.
IDENTITY = "identity"
# The way out of a refusal where a restart is offered.
START_AFRESH = "to start afresh, add --force (restart=True)"
# Tensors on the CPU, and JSON-ready metadata.
Stored = tuple[dict[str, torch.Tensor], dict[str, Any]]


@dataclass(frozen=True)
class ResumableFile:
    """A safetensors file of one run. Of several processes rank 0 alone touches it; the others are told what it read.

    Attributes:
        format_name: see ``save_tensors``.
        schema: a TypedDict that its metadata follows.
        restart: remove what is of another run, or damaged, instead of refusing it.
    """

    path: Path
    format_name: str
    schema: Any
    ranks: Ranks = ALONE
    restart: bool = False

    def write(self, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Put ``tensors`` and ``metadata`` in place of the file at once.

        Raises:
            MemoryFileError: the file cannot be written; the older one stays.
        """
        if self.ranks.main:
            save_tensors(self.path, self.format_name, tensors, metadata)

    def read(self, belongs: Callable[[dict[str, Any]], bool]) -> Stored | None:
        """What the file holds; None if there is none, or ``belongs`` passes over it.

        Args:
            belongs: takes the metadata. Raises MismatchError if the file is another run's.

        Raises:
            MemoryFileError, MismatchError: the file is damaged, or another run's, and not to be restarted.
        """
        return self.ranks.from_main(lambda: self._read(belongs))

    def _read(self, belongs: Callable[[dict[str, Any]], bool]) -> Stored | None:
        if not is_file(self.path):
            return None
        try:
            tensors, metadata = load_tensors(self.path, self.format_name)
            with sound(self.path):
                check("metadata", metadata, self.schema)
                wanted = belongs(metadata)
        except (MemoryFileError, MismatchError) as error:
            if not self.restart:
                raise type(error)(f"{error}; {START_AFRESH}") from error
            with os_errors(f"cannot remove {self.path}"):
                self.path.unlink()
            return None
        return (tensors, metadata) if wanted else None


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Refuse, inside the block, what a resumable file says and no run has written.

    Raises:
        MemoryFileError: instead of the error that the block raises.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        said = first_line(error)
        raise MemoryFileError(f"{path} is no checkpoint to go on from: {said}; delete it to start anew") from error


def differing_names(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The names in ``wanted`` whose values in ``stored`` are others."""
    return [name for name, value in wanted.items() if stored.get(name) != value]


def require_same_run(metadata: dict[str, Any], identity: dict[str, Any], folder: Path) -> bool:
    """True; the rule of a file that only the run of ``identity`` goes on from.

    Raises:
        MismatchError: another run left the file in ``folder``; naming what differs.
    """
    differing = differing_names(metadata[IDENTITY], identity)
    if differing:
        raise other_run(folder, differing)
    return True


def other_run(folder: Path, differing: list[str]) -> MismatchError:
    """The error about a folder that another run left."""
    return MismatchError(
        f"{folder} holds an unfinished compilation that differs in {', '.join(differing)}: finish it with what it was "
        "started with, or delete this folder"
    )


def begun_on(folder: str | os.PathLike) -> str | None:
    """The date that the run in ``folder`` told its chat template: it goes on with it on another day."""
    files = [Path(folder, f"{name}.safetensors") for name in (STATE_FILE, DATA_FILE, PLAN_FILE)]
    files += sorted(Path(folder).glob(f"{DATA_FILE}-*.safetensors"))[:1]
    dates = [load_metadata(file).get("date") for file in files]
    return next((date for date in dates if is_date(date)), None)


def remove_checkpoint(folder: str | os.PathLike) -> None:
    """Delete a compilation's checkpoint, those of all ratios tried included. Other files are left alone.

    Raises:
        MemoryFileError: the folder is a link, or may not be read and written.
    """
    path = Path(folder)
    check_folder(path)
    with os_errors(f"cannot remove the checkpoint {path}"):
        for part in path.glob(f"{PART}*"):
            if not part.is_symlink():
                remove_checkpoint(part)
        for file in path.glob(".*") if path.is_dir() else ():
            if _PARTIAL_FILE.fullmatch(file.name):
                file.unlink(missing_ok=True)
        for file in path.glob("*.safetensors"):
            if _FILE.fullmatch(file.name) and (file.is_symlink() or IDENTITY in load_metadata(file)):
                file.unlink(missing_ok=True)
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
