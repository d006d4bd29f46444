"""The file of the index: made whole or not at all, opened as it is, and told to be of use or not."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import MemoryFileError
from ..memory.store import FileStore
from ..utils.outputs import Output, os_errors

# Of the tables below, and of what passages are. A file of another version is made anew.
VERSION = 2
TOKENIZER = "tokenize='porter unicode61'"
SCHEMA = f"""
CREATE TABLE documents(
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, text_size INTEGER, text_mtime_ns INTEGER,
    status TEXT NOT NULL, error TEXT,
    payload TEXT, compiler TEXT, source_sha256 TEXT, source_tokens INTEGER, buffer_tokens INTEGER,
    tensor_bytes INTEGER, model TEXT, prefix TEXT, has_text INTEGER NOT NULL, added REAL NOT NULL,
    passages INTEGER NOT NULL, words INTEGER NOT NULL
);
CREATE TABLE passages(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE vectors(
    encoder TEXT NOT NULL, document INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(encoder, document)
);
CREATE VIRTUAL TABLE terms USING fts5(body, content='passages', content_rowid='id', detail=none, {TOKENIZER});
CREATE TABLE stems(stem TEXT PRIMARY KEY, passages INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE unscrubbed(since REAL NOT NULL);
PRAGMA user_version = {VERSION};
"""
# What only this connection sees: a table to take texts apart with, and the stems of their words.
_OWN = f"""
CREATE VIRTUAL TABLE temp.apart USING fts5(body, content='', columnsize=0, {TOKENIZER});
CREATE VIRTUAL TABLE temp.apart_terms USING fts5vocab(temp, apart, instance);
"""
# Seconds to wait for another process that writes.
PATIENCE = 60.0


class UnusableError(Exception):
    """The file is missing, damaged, of another version or of another program; its text says which."""


def open_database(path: Path, writable: bool) -> tuple[sqlite3.Connection, str | None]:
    """The database at ``path``, made anew and empty if there is none of use.

    Returns:
        The connection, and why it was made anew if something was there.

    Raises:
        MemoryFileError: it must be made and cannot be.
    """
    try:
        return _connect(path, writable), None
    except UnusableError as error:
        if not writable:
            raise MemoryFileError(f"the index {path} {error}, and this user may not make it anew there") from error
    with FileStore(Output.of).claim(str(path), wait=True):
        try:
            return _connect(path, writable), None  # Another process has made it meanwhile.
        except UnusableError as error:
            reason = str(error) if path.exists() else None
        make_anew(path)
        return _connect(path, writable), reason


def make_anew(path: Path) -> None:
    """Put an empty database in place of whatever is at ``path``.

    Raises:
        MemoryFileError: it cannot be written.
    """
    made = path.with_name(f".{path.name}.partial")
    with os_errors(f"cannot make the index {path}"), sql_errors(path):
        _remove(made)
        with closing(_connection(made)) as connection:
            connection.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}")
        _remove(path)
        os.replace(made, path)


@contextmanager
def taken_apart(connection: sqlite3.Connection, texts: Iterable[tuple[int, str]]) -> Iterator[None]:
    """The words of numbered texts inside the block, which a transaction is around.

    They are in ``apart_terms``: a row for each word, ``term`` its stem and ``doc`` the number of its text.
    """
    connection.executemany("INSERT INTO apart(rowid, body) VALUES (?, ?)", texts)
    yield
    connection.execute("INSERT INTO apart(apart) VALUES ('delete-all')")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is malformed or no database: its subclasses are about the file's use, such as a full disk."""
    return type(error) is sqlite3.DatabaseError


@contextmanager
def sql_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite cannot do inside the block into this package's error; damage passes.

    Raises:
        MemoryFileError: naming the index at ``path``.
    """
    try:
        yield
    except sqlite3.Error as error:
        if is_damage(error):
            raise
        raise MemoryFileError(f"cannot use the index {path}: {error}") from error


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    """Open what is there.

    Raises:
        UnusableError: it is of no use.
        MemoryFileError: it cannot be opened or read.
    """
    if not path.exists():
        raise UnusableError("is missing")
    # Where nobody may write the files that a reader of a log needs, the database is read as it lies there.
    mode = "rw" if writable else "ro" if Path(f"{path}-wal").exists() else "ro&immutable=1"
    source = f"{path.absolute().as_uri()}?mode={mode}"
    with sql_errors(path), ExitStack() as on_error:
        connection = on_error.enter_context(closing(_connection(source, uri=True)))
        try:
            connection.executescript("PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON; PRAGMA temp_store = 2;")
            if _schema(connection) != _expected_schema():
                raise UnusableError("is of another version or program")
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise UnusableError(f"is damaged ({error})") from error
            raise
        connection.executescript(_OWN)
        on_error.pop_all()
    return connection


def _connection(source: str | Path, **options: Any) -> sqlite3.Connection:
    return sqlite3.connect(source, timeout=PATIENCE, isolation_level=None, check_same_thread=False, **options)


def _schema(connection: sqlite3.Connection) -> list[tuple]:
    version = connection.execute("PRAGMA user_version").fetchone()
    return [version, *connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name")]


def _expected_schema() -> list[tuple]:
    with closing(_connection(":memory:")) as connection:
        connection.executescript(SCHEMA)
        return _schema(connection)


def _remove(path: Path) -> None:
    """Delete a database with its log."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
