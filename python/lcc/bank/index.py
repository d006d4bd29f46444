"""The index of a bank: what there is to know of its memories without reading them, and a search by words.

It is a cache of the bank's files. Several processes may read it while one writes.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from .contents import delete, insert, passage_numbers
from .database import open_database, sql_errors
from .passages import Passage
from .ranking import NUMBER_BITS, Scored, best_passages


class Files(NamedTuple):
    """Sizes in bytes and times of change of a memory's file and its text's, as they were when they were read."""

    size: int
    mtime_ns: int
    text_size: int | None = None
    text_mtime_ns: int | None = None


@dataclass(frozen=True)
class Document:
    """What the index knows of a memory.

    Attributes:
        key: the name of its files.
        files: what it was read from.
        status: ``damaged`` ones are never found; ``error`` says why.
        payload, compiler: the payload's kind, and the compiler's name.
        source_sha256, source_tokens: of the text.
        buffer_tokens: 0 of a payload that has none.
        tensor_bytes: of all tensors.
        model: digest of the fingerprint of the model and the tokenizer.
        prefix: digest of the tokens in front of the memory.
        has_text: whether the bank keeps the text.
        added: when the index read it, in seconds since 1970.
    """

    key: str
    files: Files
    status: Literal["ok", "damaged"]
    error: str | None = None
    payload: str | None = None
    compiler: str | None = None
    source_sha256: str | None = None
    source_tokens: int | None = None
    buffer_tokens: int | None = None
    tensor_bytes: int | None = None
    model: str | None = None
    prefix: str | None = None
    has_text: bool = False
    added: float = 0.0


@dataclass(frozen=True)
class Hit:
    """A memory that a query found.

    Attributes:
        key: of the memory.
        score: of its best passage: more is better; only hits of one query compare.
        share: how much of the query that passage has, whatever the query: of BM25, the share of what a passage of mean
            length with all of the query's words would have; of vectors, the cosine; of several retrievers, the share of
            the highest score that there can be.
        passage: the text of that passage.
    """

    key: str
    score: float
    share: float
    passage: str


_FILES = "size, mtime_ns, text_size, text_mtime_ns"
_OTHERS = [field.name for field in fields(Document) if field.name not in ("key", "files")]
_COLUMNS = ", ".join(["key", _FILES, *_OTHERS])


class BankIndex:
    """A SQLite file. Several threads may use one index.

    Attributes:
        path: of the file.
        remade: why it was made anew when it was opened, and is empty; None if it was not, or nothing was there.
    """

    def __init__(self, path: Path, writable: bool = True):
        """Open the index at ``path``, made anew if there is none of use.

        Raises:
            MemoryFileError: it cannot be opened, or must be made and cannot be.
        """
        self.path, self._writable = path, writable
        self._connection, self.remade = open_database(path, writable)
        self._inode = path.stat().st_ino
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @property
    def replaced(self) -> bool:
        """Whether another process has made the file anew since."""
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out inside the block, and keep all that it writes, or nothing if it raises.

        Raises:
            MemoryFileError: the file cannot be written, or another process has been writing for too long.
        """
        with self._lock, sql_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def put(self, document: Document, passages: Sequence[Passage] = ()) -> None:
        """Put a memory in place of what has its key; call it inside ``writing``."""
        older = self.document(document.key)
        if older:
            delete(self._connection, document.key)
        if older and older.has_text and not document.has_text:
            self._leave_to_scrub()
        row = {"key": document.key, **document.files._asdict()}
        insert(self._connection, row | {name: getattr(document, name) for name in _OTHERS}, passages)

    def drop(self, key: str) -> None:
        """Forget a memory, if it is there; call it inside ``writing``."""
        if self.document(key):
            delete(self._connection, key)
            self._leave_to_scrub()

    def _leave_to_scrub(self) -> None:
        self._connection.execute("INSERT INTO unscrubbed VALUES (?)", (time.time(),))

    @property
    def unscrubbed(self) -> bool:
        """Whether words of what was dropped, or of a text that is kept no more, may still be in the file."""
        return bool(self._rows("SELECT 1 FROM unscrubbed LIMIT 1"))

    def scrub(self) -> None:
        """Leave nothing of what was dropped in the file, nor in its log once no other process reads that."""
        with self.writing():
            self._connection.execute("INSERT INTO terms(terms) VALUES ('optimize')")
            self._connection.execute("DELETE FROM unscrubbed")
        with self._lock, sql_errors(self.path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def files(self) -> dict[str, Files]:
        """What each memory was read from, by key."""
        return {key: Files(*files) for key, *files in self._rows(f"SELECT key, {_FILES} FROM documents")}

    def documents(self, status: str | None = None) -> list[Document]:
        """All memories, or those of a status, by key."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM documents WHERE ?1 IS NULL OR status = ?1 ORDER BY key", status)
        return list(map(_document, rows))

    def document(self, key: str) -> Document | None:
        """The memory of a key."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM documents WHERE key = ?", key)
        return _document(rows[0]) if rows else None

    def other(self, key: str) -> Document | None:
        """The memory, not damaged, that has been here the longest, apart from that of ``key``."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM documents WHERE status = 'ok' AND key <> ? ORDER BY id LIMIT 1", key)
        return _document(rows[0]) if rows else None

    def passages(self, key: str) -> list[Passage]:
        """What the memory of a key is found by."""
        with self._reading():
            found = self._rows("SELECT id FROM documents WHERE key = ?", key)
            own = "SELECT kind, body FROM passages WHERE id >= ? AND id < ? ORDER BY id"
            return [Passage(*row) for (number,) in found for row in self._rows(own, *passage_numbers(number))]

    def stamp(self) -> tuple[object, ...]:
        """Equal as long as the index holds the same memories that are not damaged."""
        return tuple(self._rows("SELECT count(*), total(id), max(added) FROM documents WHERE status = 'ok'"))

    def all_passages(self) -> dict[str, list[Passage]]:
        """Those of all memories that are not damaged, by key."""
        passages: dict[str, list[Passage]] = {document.key: [] for document in self.documents("ok")}
        joined = f"SELECT key, kind, body FROM passages JOIN documents ON documents.id = passages.id >> {NUMBER_BITS}"
        for key, kind, body in self._rows(f"{joined} WHERE status = 'ok' ORDER BY passages.id"):
            passages[key].append(Passage(kind, body))
        return passages

    def vectors(self, encoder: str) -> dict[str, bytes]:
        """What ``put_vectors`` kept of the memories as they are, by key."""
        joined = "SELECT key, data FROM vectors JOIN documents ON documents.id = document WHERE encoder = ?"
        return dict(self._rows(joined, encoder))

    def put_vectors(self, encoder: str, vectors: Mapping[str, bytes]) -> None:
        """Keep what an encoder made of the passages of memories; where nobody may write, nothing."""
        if not self._writable:
            return
        with self.writing():
            self._connection.executemany(
                "INSERT OR REPLACE INTO vectors SELECT ?, id, ? FROM documents WHERE key = ?",
                [(encoder, data, key) for key, data in vectors.items()],
            )

    def search(self, query: str, k: int = 5, without: str | None = None) -> list[Hit]:
        """The memories whose passages fit a query's words best, the best first; ``k`` at most.

        Args:
            query: plain text. Words are compared by their English stems, without accents and case.
            without: a passage that is passed over, whichever memory has it.
        """
        with self._reading():
            best: dict[int, Scored] = {}
            for passage in best_passages(self._connection, query):
                if passage.body != without:
                    best.setdefault(passage.number >> NUMBER_BITS, passage)
            hits = []
            for document, passage in islice(best.items(), k):
                [(key,)] = self._rows("SELECT key FROM documents WHERE id = ?", document)
                hits.append(Hit(key, passage.score, passage.share, passage.body))
        return hits

    def check(self) -> str | None:
        """What is wrong with the file, read through; None if it is whole."""
        try:
            [(verdict,), *_] = self._rows("PRAGMA quick_check")
            if self._writable:
                with self.writing():
                    self._connection.execute("INSERT INTO terms(terms) VALUES ('integrity-check')")
        except sqlite3.DatabaseError as error:
            return str(error)
        return None if verdict == "ok" else verdict

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The same state of the index for all that is read inside the block."""
        with self._lock, sql_errors(self.path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def _rows(self, statement: str, *values: object) -> list[tuple]:
        with self._lock, sql_errors(self.path):
            return self._connection.execute(statement, values).fetchall()


def _document(row: tuple) -> Document:
    key, size, mtime_ns, text_size, text_mtime_ns, *others = row
    named = dict(zip(_OTHERS, others, strict=True))
    named["has_text"] = bool(named["has_text"])
    return Document(key, Files(size, mtime_ns, text_size, text_mtime_ns), **named)
