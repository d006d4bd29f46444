"""The index brought to what the files are: what is new or changed is read, what is gone is dropped."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..errors import LCCError, MemoryFileError, MismatchError
from ..memory.memory import Memory
from ..modeling.fingerprint import DTYPE, differing
from ..utils.hashing import json_digest
from ..utils.tensor_files import load_metadata
from .folder import BankFolder
from .index import BankIndex, Document, Files
from .passages import passages_of


def reconcile(index: BankIndex, folder: BankFolder, writable: bool = True) -> None:
    """Bring the whole index to what the files are.

    Raises:
        MemoryFileError: something has changed, and the index cannot be written.
    """
    known = index.files()  # Before the files: what another process adds meanwhile is not taken for one that is gone.
    found = folder.scan()
    changed = sorted(key for key in known.keys() | found.keys() if known.get(key) != found.get(key))
    if changed and not writable:
        raise MemoryFileError(
            f"the index of the bank {folder.path} does not have the latest of {', '.join(changed[:3])}, and this user "
            "may not write it: run lcc bank verify as one who may, or copy the bank"
        )
    update(index, folder, changed)
    if writable and index.unscrubbed:
        index.scrub()


def update(index: BankIndex, folder: BankFolder, keys: Iterable[str]) -> None:
    """Bring the index to what the files of some memories are."""
    for key in keys:
        while not _updated(index, folder, key):
            pass  # Another process has changed the files since they were read.


def _updated(index: BankIndex, folder: BankFolder, key: str) -> bool:
    """Read a memory's files into the index, unless they change meanwhile."""
    files, memory, error = folder.files(key), None, ""
    known = index.document(key)
    if files == (known and known.files):
        return True
    if files is not None:
        try:
            memory = Memory.load(folder.memory(key))
        except LCCError as failure:
            error = str(failure)
    with index.writing():
        if folder.files(key) != files:
            return False
        if files is None:
            index.drop(key)
            return True
        try:
            if memory is None:
                raise MemoryFileError(error)
            put_entry(index, folder, key, memory)
        except LCCError as failure:
            index.put(Document(key, files, "damaged", str(failure), added=time.time()))
    return True


def put_entry(index: BankIndex, folder: BankFolder, key: str, memory: Memory) -> None:
    """Put a memory that is in its file into the index, inside ``index.writing``.

    Raises:
        MismatchError: as ``require_one_model``.
        MemoryFileError: its text cannot be read.
    """
    require_one_model(index, folder, key, memory)
    text, files = folder.read_text(key, memory.source_sha256), folder.files(key)
    passages = passages_of(memory.questions, text)
    index.put(_document(key, files or Files(0, 0), memory, text is not None), passages)


def require_one_model(index: BankIndex, folder: BankFolder, key: str, memory: Memory) -> None:
    """Refuse a memory that cannot be read with the others of its bank.

    Raises:
        MismatchError: it is of another model, tokenizer or prefix than they; naming what differs.
    """
    other = index.other(key)
    if other is None or (other.model, other.prefix) == (model_digest(memory), prefix_digest(memory)):
        return
    names = differing(stored_fingerprint(folder, other.key), memory.fingerprint) or ["prefix_ids"]
    raise MismatchError(
        f"the memory {key} cannot stand in the bank {folder.path} beside {other.key}: they differ in "
        f"{', '.join(names)}; give each model, tokenizer and prefix a bank of its own"
    )


def stored_fingerprint(folder: BankFolder, key: str) -> dict[str, str]:
    """The fingerprint that a memory's file says it has."""
    return load_metadata(folder.memory(key)).get("fingerprint", {})


def model_digest(memory: Memory) -> str:
    """Digest of the model and the tokenizer, whatever the dtype of the weights."""
    return json_digest({name: value for name, value in memory.fingerprint.items() if name != DTYPE})


def prefix_digest(memory: Memory) -> str:
    """Digest of the tokens in front of the memory."""
    return json_digest(list(memory.prefix_ids))


def _document(key: str, files: Files, memory: Memory, has_text: bool) -> Document:
    return Document(
        key, files, "ok",
        payload=memory.payload.kind,
        compiler=memory.compiler["name"],
        source_sha256=memory.source_sha256,
        source_tokens=memory.source_tokens,
        buffer_tokens=memory.buffer_tokens,
        tensor_bytes=memory.nbytes,
        model=model_digest(memory),
        prefix=prefix_digest(memory),
        has_text=has_text,
        added=time.time(),
    )  # fmt: skip
