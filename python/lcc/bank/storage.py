"""A folder of memories of one model, and the index of what they know."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MemoryFileError, MismatchError
from ..memory.memory import Memory
from ..modeling.fingerprint import fingerprint, require_same, tokenizer_fingerprint
from ..utils.hashing import text_digest
from .entries import put_entry, reconcile, require_one_model, stored_fingerprint, update
from .folder import BankFolder, check_key, key_of
from .index import BankIndex, Document, Files, Hit
from .kept_index import KeptIndex
from .passages import Passage
from .verification import Problem, problems

Storage = TypeVar("Storage", bound="BankStorage")


class BankStorage:
    """A folder of memories of one model, tokenizer and prefix.

    The memories' files are the bank. Its index is a cache of them, which is brought up to date when the bank is opened,
    so a kill at any moment, or files that were copied or deleted by hand, do no harm. Several processes may use a bank.

    Args:
        path: of the folder.
        create: make the folder if it is missing.

    Attributes:
        path: of the folder.
        folder: its files.
        index: what its memories know.

    Raises:
        MemoryFileError: there is no bank and ``create`` is False; the folder cannot be made or read; or its index is
            not up to date and cannot be written.
    """

    def __init__(self, path: str | os.PathLike, create: bool = False):
        self.path = Path(path)
        self.folder = BankFolder(self.path)
        if create:
            self.folder.make()
        elif not self.folder.memories.is_dir():
            raise MemoryFileError(
                f"there is no bank in {self.path}: make one with lcc bank add DOCUMENTS --bank {self.path} "
                "(create=True), or name its folder"
            )
        self.index = KeptIndex(self.folder)

    def __enter__(self: Storage) -> Storage:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the index."""
        self.index.close()

    @property
    def rebuilt(self) -> str | None:
        """Why the index was made anew from the files, since the bank was opened; None if it was not."""
        return self.index.rebuilt

    @property
    def damaged(self) -> dict[str, str]:
        """What is wrong with the memories that cannot be used, by key. They are never found."""
        documents = self.index.use(lambda index: index.documents("damaged"))
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
        folder = self.folder
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

        self.index.use(write)

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
                with self.folder.store.claim(key) as claim, index.writing():
                    self._require_claim(key, claim)
                    self.folder.remove(key)
                    index.drop(key)
            index.scrub()

        self.index.use(delete)

    def forget_text(self, *keys: str) -> None:
        """Delete texts, of which nothing is left in the bank's files but what memories and their questions say.

        Args:
            keys: of memories, which need not be there: a text is kept before its memory is made.

        Raises:
            InputError: a key cannot name a file.
            MemoryFileError: a text cannot be deleted.
        """
        for key in keys:
            check_key(key)

        def forget(index: BankIndex) -> None:
            for key in keys:
                self.folder.remove_text(key)
            update(index, self.folder, keys)
            index.scrub()

        self.index.use(forget)

    def require_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse another model or tokenizer than that of the memories, if there are any.

        Raises:
            InputError: the model carries an active adapter, or its weights cannot be read.
            MismatchError: naming what differs.
        """
        document = self.index.use(lambda index: index.other(""))
        if document is not None:
            require_same(stored_fingerprint(self.folder, document.key), fingerprint(model, tokenizer))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.index.use(lambda index: index.document(key)) is not None

    def documents(self) -> list[Document]:
        """What there is to know of all memories, by key, damaged ones among them."""
        return self.index.use(lambda index: index.documents())

    def document(self, key: str) -> Document:
        """What there is to know of a memory.

        Raises:
            InputError: there is none of that key.
        """
        document = self.index.use(lambda index: index.document(key))
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
        return Memory.load(self.folder.memory(key))

    def text(self, key: str) -> str | None:
        """The text of a memory; None if the bank does not keep it.

        Raises:
            InputError: there is no memory of that key.
            MemoryFileError: the text cannot be read.
        """
        digest = self.document(key).source_sha256
        return None if digest is None else self.folder.read_text(key, digest)

    def state(self, key: str) -> Files | None:
        """Sizes and times of change of the files of a memory as they are now, read or not; None if there are none."""
        return self.folder.files(key)

    def passages(self, key: str) -> list[Passage]:
        """What a memory is found by: its questions, or without any the windows of its text if that is kept."""
        return self.index.use(lambda index: index.passages(key))

    def search(self, query: str, k: int = 5, without: str | None = None) -> list[Hit]:
        """The memories whose passages fit a query's words best, the best first: ``k`` at most, none if none fits.

        Args:
            query: plain text. Words are compared by their English stems, without accents and case.
            without: a passage that is passed over, whichever memory has it.
        """
        return self.index.use(lambda index: index.search(query, k, without))

    def refresh(self, *keys: str) -> None:
        """Bring the index to what the files are: all, or those of some memories, which need not be there."""

        def bring(index: BankIndex) -> None:
            if keys:
                update(index, self.folder, keys)
            else:
                reconcile(index, self.folder, self.index.writable)

        self.index.use(bring)

    def rebuild(self) -> None:
        """Make the index anew from the files.

        Raises:
            MemoryFileError: it cannot be written.
        """
        self.index.rebuild("was to be made anew")

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
        return self.index.use(lambda index: list(problems(index, self.folder, given)))

    def _require_claim(self, key: str, claim: object) -> None:
        if claim is None:
            raise MemoryFileError(f"another process is making the memory {key} of the bank {self.path}: wait for it")
