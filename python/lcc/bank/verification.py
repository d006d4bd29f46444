"""All that may be wrong with a bank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import LCCError
from ..memory.memory import Memory
from ..modeling.fingerprint import require_same
from .folder import BankFolder
from .index import BankIndex, Document


@dataclass(frozen=True)
class Problem:
    """What is wrong.

    Attributes:
        key: of the memory; None: it is about no memory.
    """

    key: str | None
    what: str


def problems(index: BankIndex, folder: BankFolder, given: dict[str, str]) -> Iterator[Problem]:
    """What is wrong with the index, with files that belong to nothing, and with each memory and its text.

    Args:
        given: the fingerprint that memories must have, or a part of it.
    """
    if wrong := index.check():
        yield Problem(None, f"the index is damaged ({wrong}): run lcc bank rebuild")
    for path in folder.misnamed():
        yield Problem(None, f"{path} has a name that no memory of a bank can have: rename it")
    for path in folder.texts_alone():
        yield Problem(None, f"{path} belongs to no memory: delete it, or add its document again")
    for document in index.documents():
        for what in _wrong(document, folder, given):
            yield Problem(document.key, what)


def _wrong(document: Document, folder: BankFolder, given: dict[str, str]) -> Iterator[str]:
    if document.status == "damaged":
        yield document.error or ""
        return
    try:
        memory = Memory.load(folder.memory(document.key))
        if given:
            require_same(memory.fingerprint, given)
        kept = folder.read_text(document.key, memory.source_sha256)
    except LCCError as error:
        yield str(error)
        return
    text = folder.text(document.key)
    if kept is None and text.exists():
        yield f"{text} is of another text: delete it"
