"""The index of a bank: what there is to know of its memories without reading them, and a search by words.

It is a cache of the bank's files. Several processes may read it while one writes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from .database import open_database, sql_errors, taken_apart
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
            length with all of the query's words would have; of vectors, the cosine.
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
        self.drop(document.key)
        row = {"key": document.key, **document.files._asdict()}
        row |= {name: getattr(document, name) for name in _OTHERS}
        passages = passages[: 1 << NUMBER_BITS]
        row |= {"passages": len(passages), "words": sum(len(passage.body.split()) for passage in passages)}
        places = ", ".join("?" * len(row))
        added = self._connection.execute(
            f"INSERT INTO documents({', '.join(row)}) VALUES ({places})", list(row.values())
        )
        first, _ = _numbers(added.lastrowid or 0)
        execute = self._connection.executemany
        execute("INSERT INTO passages VALUES (?, ?, ?)", [(first + at, *each) for at, each in enumerate(passages)])
        bodies = [(first + at, each.body) for at, each in enumerate(passages)]
        execute("INSERT INTO terms(rowid, body) VALUES (?, ?)", bodies)
        self._count(bodies, 1)

    def drop(self, key: str) -> None:
        """Forget a memory, if it is there; call it inside ``writing``."""
        found = self._connection.execute("SELECT id FROM documents WHERE key = ?", (key,)).fetchone()
        if found is None:
            return
        own = _numbers(found[0])
        bodies = self._connection.execute("SELECT id, body FROM passages WHERE id >= ? AND id < ?", own).fetchall()
        self._connection.executemany("INSERT INTO terms(terms, rowid, body) VALUES ('delete', ?, ?)", bodies)
        self._connection.execute("DELETE FROM passages WHERE id >= ? AND id < ?", own)
        self._connection.execute("DELETE FROM vectors WHERE document = ?", found)
        self._connection.execute("DELETE FROM documents WHERE id = ?", found)
        self._count(bodies, -1)

    def _count(self, bodies: list[tuple[int, str]], sign: int) -> None:
        """Count, for each stem, the passages that have come or gone."""
        with taken_apart(self._connection, bodies):
            self._connection.execute(
                "INSERT INTO stems SELECT term, ? * count(DISTINCT doc) FROM apart_terms WHERE true GROUP BY term "
                "ON CONFLICT(stem) DO UPDATE SET passages = passages + excluded.passages",
                (sign,),
            )
            self._connection.execute("DELETE FROM stems WHERE passages = 0 AND stem IN (SELECT term FROM apart_terms)")

    def scrub(self) -> None:
        """Leave nothing of what was dropped in the file, nor in its log once no other process reads that."""
        with self.writing():
            self._connection.execute("INSERT INTO terms(terms) VALUES ('optimize')")
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
            return [Passage(*row) for (number,) in found for row in self._rows(own, *_numbers(number))]

    def stamp(self) -> tuple[object, ...]:
        """Equal as long as the index holds the same memories that are not damaged."""
        return tuple(self._rows("SELECT id, added FROM documents WHERE status = 'ok' ORDER BY key"))

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


def _numbers(document: int) -> tuple[int, int]:
    """The first number of a document's passages, and that behind the last."""
    return document << NUMBER_BITS, (document + 1) << NUMBER_BITS


def _document(row: tuple) -> Document:
    key, size, mtime_ns, text_size, text_mtime_ns, *others = row
    named = dict(zip(_OTHERS, others, strict=True))
    named["has_text"] = bool(named["has_text"])
    return Document(key, Files(size, mtime_ns, text_size, text_mtime_ns), **named)
