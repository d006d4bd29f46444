"""A folder of memories of one model, and the index of what they know."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, LCCError, MemoryFileError, MismatchError
from ..memory.memory import Memory
from ..modeling.fingerprint import fingerprint, require_same, tokenizer_fingerprint
from ..utils.hashing import text_digest
from .database import make_anew
from .entries import put_entry, reconcile, require_one_model, update
from .folder import BankFolder, check_key, key_of
from .index import BankIndex, Document, Hit
from .passages import Passage

T = TypeVar("T")
Storage = TypeVar("Storage", bound="BankStorage")


@dataclass(frozen=True)
class Problem:
    """What ``BankStorage.verify`` found.

    Attributes:
        key: of the memory; None: it is about no memory.
    """

    key: str | None
    what: str


class BankStorage:
    """A folder of memories of one model, tokenizer and prefix.

    The memories' files are the bank. Its index is a cache of them, which is brought up to date when the bank is opened,
    so a kill at any moment, or files that were copied or deleted by hand, do no harm. Several processes may use a bank.

    Args:
        path: of the folder.
        create: make the folder if it is missing.

    Attributes:
        path: of the folder.
        rebuilt: why the index was made anew from the files; None if it was not.

    Raises:
        MemoryFileError: there is no bank and ``create`` is False; the folder cannot be made or read; or its index is
            not up to date and cannot be written.
    """

    def __init__(self, path: str | os.PathLike, create: bool = False):
        self.path = Path(path)
        self._folder = BankFolder(self.path)
        if create:
            self._folder.make()
        elif not self._folder.memories.is_dir():
            raise MemoryFileError(
                f"there is no bank in {self.path}: make one with lcc bank add DOCUMENTS --bank {self.path} "
                "(create=True), or name its folder"
            )
        self._writable = self._folder.writable
        self._index = BankIndex(self._folder.index, self._writable)
        self.rebuilt = self._index.remade
        self.refresh()

    def __enter__(self: Storage) -> Storage:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the index."""
        self._index.close()

    @property
    def folder(self) -> BankFolder:
        """Its files."""
        return self._folder

    @property
    def damaged(self) -> dict[str, str]:
        """What is wrong with the memories that cannot be used, by key. They are never found."""
        documents = self.with_index(lambda index: index.documents("damaged"))
        return {document.key: document.error or "" for document in documents}

    def put(self, key: str, memory: Memory, text: str | None = None) -> None:
        """Keep a memory, in place of an older one of its key.

        Args:
            text: its text, to keep too. None: a text of it that is there stays.

        Raises:
            InputError: ``key`` cannot name a file, or ``text`` cannot be encoded.
            MismatchError: the memory is of another model, tokenizer or prefix than the others, or not of ``text``.
            MemoryFileError: it cannot be written, or another process is making the memory of ``key``.
        """
        check_key(key)
        folder = self._folder
        if text is not None and text_digest(text) != memory.source_sha256:
            raise MismatchError(f"the memory {key} is of another text than the one given: leave the text out")

        def write(index: BankIndex) -> None:
            with folder.store.claim(key) as claim, index.writing():
                self._require_claim(key, claim)
                require_one_model(index, folder, key, memory)
                if text is not None:
                    folder.write_text(key, text)
                elif folder.read_text(key, memory.source_sha256) is None:
                    folder.remove_text(key)
                folder.store.put(key, memory)
                put_entry(index, folder, key, memory)

        self.with_index(write)

    def import_memory(self, path: str | os.PathLike, key: str | None = None, text: str | None = None) -> str:
        """Keep a copy of a memory's file, by default under its name; see ``put``.

        Returns:
            Its key.

        Raises:
            MemoryFileError: it is no memory that can be read; also as ``put``.
            InputError, MismatchError: as ``put``.
        """
        key = key_of(path) if key is None else key
        self.put(key, Memory.load(path), text)
        return key

    def remove(self, *keys: str) -> None:
        """Delete memories with their texts, of which nothing is left in the bank's files.

        Raises:
            InputError: there is no memory of a key; nothing was deleted.
            MemoryFileError: it cannot be deleted, or another process is making it.
        """
        for key in keys:
            self.document(key)

        def delete(index: BankIndex) -> None:
            for key in keys:
                with self._folder.store.claim(key) as claim, index.writing():
                    self._require_claim(key, claim)
                    self._folder.remove(key)
                    index.drop(key)
            index.scrub()

        self.with_index(delete)

    def forget_text(self, *keys: str) -> None:
        """Delete texts, of which nothing is left in the bank's files but what memories and their questions say.

        Raises:
            InputError: there is no memory of a key; nothing was deleted.
            MemoryFileError: it cannot be deleted.
        """
        for key in keys:
            self.document(key)

        def forget(index: BankIndex) -> None:
            for key in keys:
                self._folder.remove_text(key)
            update(index, self._folder, keys)
            index.scrub()

        self.with_index(forget)

    def documents(self) -> list[Document]:
        """What there is to know of all memories, by key, damaged ones among them."""
        return self.with_index(lambda index: index.documents())

    def document(self, key: str) -> Document:
        """What there is to know of a memory.

        Raises:
            InputError: there is none of that key.
        """
        document = self.with_index(lambda index: index.document(key))
        if document is None:
            raise InputError(f"there is no memory {key!r} in the bank {self.path}: lcc bank list names all")
        return document

    def memory(self, key: str) -> Memory:
        """Read a memory.

        Raises:
            InputError: there is none of that key.
            MemoryFileError: its file cannot be used.
        """
        self.document(key)
        return Memory.load(self._folder.memory(key))

    def text(self, key: str) -> str | None:
        """The text of a memory; None if the bank does not keep it.

        Raises:
            InputError: there is no memory of that key.
            MemoryFileError: the text cannot be read.
        """
        digest = self.document(key).source_sha256
        return None if digest is None else self._folder.read_text(key, digest)

    def passages(self, key: str) -> list[Passage]:
        """What a memory is found by: its questions, and windows of its text if that is kept."""
        return self.with_index(lambda index: index.passages(key))

    def search(self, query: str, k: int = 5, without: str | None = None) -> list[Hit]:
        """The memories whose passages fit a query's words best, the best first: ``k`` at most, none if none fits.

        Args:
            query: plain text. Words are compared by their English stems, without accents and case.
            without: a passage that is passed over, whichever memory has it.
        """
        return self.with_index(lambda index: index.search(query, k, without))

    def refresh(self, *keys: str) -> None:
        """Bring the index to what the files are: all, or those of some memories, which need not be there."""

        def bring(index: BankIndex) -> None:
            if keys:
                update(index, self._folder, keys)
            else:
                reconcile(index, self._folder, self._writable)

        self.with_index(bring)

    def rebuild(self) -> None:
        """Make the index anew from the files.

        Raises:
            MemoryFileError: it cannot be written.
        """
        self._remake("asked for")

    def verify(
        self, model: PreTrainedModel | None = None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> list[Problem]:
        """All that is wrong: memories that are not whole or not of this model, texts that belong to none, the index.

        Args:
            model, tokenizer: what is None is not compared.

        Raises:
            InputError: the model carries an active adapter, or its weights cannot be read.
        """
        given = {} if model is None else fingerprint(model)
        given |= {} if tokenizer is None else tokenizer_fingerprint(tokenizer)
        wrong = self._index.check()
        problems = [Problem(None, f"the index is damaged ({wrong}): run lcc bank rebuild")] if wrong else []
        problems += [Problem(None, f"{path} belongs to no memory: delete it") for path in self._folder.strangers()]
        for document in self.documents():
            problems += [Problem(document.key, what) for what in self._wrong(document, given)]
        return problems

    def _wrong(self, document: Document, given: dict[str, str]) -> list[str]:
        """What is wrong with a memory and its text."""
        key = document.key
        if document.status == "damaged":
            return [document.error or ""]
        try:
            memory = Memory.load(self._folder.memory(key))
            require_same(memory.fingerprint, given)
            kept = self._folder.read_text(key, memory.source_sha256)
        except LCCError as error:
            return [str(error)]
        text = self._folder.text(key)
        return [f"{text} is of another text: delete it"] if kept is None and text.exists() else []

    def _require_claim(self, key: str, claim: object) -> None:
        if claim is None:
            raise MemoryFileError(f"another process is making the memory {key} of the bank {self.path}: wait for it")

    def with_index(self, action: Callable[[BankIndex], T]) -> T:
        """What ``action`` gives, of the index, which is made anew if it turns out to be damaged."""
        if self._index.replaced:
            self._index.close()
            self._index = BankIndex(self._folder.index, self._writable)
        try:
            return action(self._index)
        except sqlite3.DatabaseError as error:
            self._remake(f"is damaged ({error})")
            return action(self._index)

    def _remake(self, reason: str) -> None:
        self._index.close()
        make_anew(self._folder.index)
        self._index = BankIndex(self._folder.index, self._writable)
        reconcile(self._index, self._folder, self._writable)
        self.rebuilt = reason
