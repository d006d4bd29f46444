"""A memory's history against the files of its ancestors."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ..errors import InputError, MemoryFileError, MismatchError
from ..utils.tensor_files import load_metadata
from .lineage import Ancestor
from .memory import Memory

# Ancestors that an error names.
NAMED = 8


def verify_lineage(memory: Memory, folder: Path) -> int:
    """Compare all that a memory says of its ancestors with what their own files say.

    What an older file does not say (null) is not compared.

    Args:
        folder: that has the file of every ancestor, under any name.

    Returns:
        How many ancestors there are.

    Raises:
        InputError: there is no such folder.
        MismatchError: naming the ancestors that have no file there, and the fields in which one differs.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: name the one that holds the memory's ancestors")
    found, unread = _by_digest(folder)
    wrong = [fault for ancestor in memory.lineage if (fault := _fault(ancestor, found[ancestor["digest"]], folder))]
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        hint = f"; cannot be read: {', '.join(unread[:NAMED])}" if unread else ""
        raise MismatchError(f"the history does not hold: {'; '.join(wrong[:NAMED])}{more}{hint}")
    return len(memory.lineage)


def _by_digest(folder: Path) -> tuple[dict[str, dict[Path, Ancestor]], list[str]]:
    """What each memory of the folder says of itself, by the digest of its tensors; and the files that are damaged."""
    found: dict[str, dict[Path, Ancestor]] = defaultdict(dict)
    unread = []
    for path in sorted(each for each in folder.iterdir() if each.is_file() and "source_sha256" in load_metadata(each)):
        try:
            itself = Memory.load(path).with_ancestors()[0]
        except MemoryFileError:
            unread.append(path.name)
        else:
            found[itself["digest"]][path] = itself
    return found, unread


def _fault(ancestor: Ancestor, files: dict[Path, Ancestor], folder: Path) -> str | None:
    """What is wrong with one ancestor; None if one of the files that hold its tensors says the same of it."""
    name = f"{ancestor['operation']} {ancestor['digest'][:12]}"
    faults = []
    for path, itself in files.items():
        differing = [field for field, said in ancestor.items() if said is not None and itself.get(field) != said]
        if not differing:
            return None
        faults.append(f"{name} differs from {path.name} in {', '.join(differing)}")
    return faults[0] if faults else f"{name} is not in the folder {folder}"
