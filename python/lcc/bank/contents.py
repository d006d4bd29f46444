"""A memory's rows in the tables of the index: its own, its passages', and what counts their words."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from .database import taken_apart
from .passages import Passage
from .ranking import NUMBER_BITS


def insert(connection: sqlite3.Connection, row: Mapping[str, object], passages: Sequence[Passage]) -> None:
    """Add a memory that is not there, inside a transaction.

    Args:
        row: of the table ``documents``, but for what is counted here.
    """
    passages = passages[: 1 << NUMBER_BITS]
    words = sum(len(passage.body.split()) for passage in passages)
    row = {**row, "passages": len(passages), "words": words}
    places = ", ".join("?" * len(row))
    added = connection.execute(f"INSERT INTO documents({', '.join(row)}) VALUES ({places})", list(row.values()))
    first, _ = passage_numbers(added.lastrowid or 0)
    rows = [(number, *passage) for number, passage in enumerate(passages, first)]
    connection.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
    bodies = [(number, body) for number, _, body in rows]
    connection.executemany("INSERT INTO terms(rowid, body) VALUES (?, ?)", bodies)
    _count(connection, bodies, 1)


def delete(connection: sqlite3.Connection, key: str) -> None:
    """Take a memory that is there away, inside a transaction."""
    found = connection.execute("SELECT id FROM documents WHERE key = ?", (key,)).fetchone()
    own = passage_numbers(*found)
    bodies = connection.execute("SELECT id, body FROM passages WHERE id >= ? AND id < ?", own).fetchall()
    connection.executemany("INSERT INTO terms(terms, rowid, body) VALUES ('delete', ?, ?)", bodies)
    connection.execute("DELETE FROM passages WHERE id >= ? AND id < ?", own)
    connection.execute("DELETE FROM vectors WHERE document = ?", found)
    connection.execute("DELETE FROM documents WHERE id = ?", found)
    _count(connection, bodies, -1)


def passage_numbers(document: int) -> tuple[int, int]:
    """The first number of a document's passages, and that behind the last."""
    return document << NUMBER_BITS, (document + 1) << NUMBER_BITS


def _count(connection: sqlite3.Connection, bodies: list[tuple[int, str]], sign: int) -> None:
    """Count, for each stem, the passages that have come or gone."""
    with taken_apart(connection, bodies):
        connection.execute(
            "INSERT INTO stems SELECT term, ? * count(DISTINCT doc) FROM apart_terms WHERE true GROUP BY term "
            "ON CONFLICT(stem) DO UPDATE SET passages = passages + excluded.passages",
            (sign,),
        )
        connection.execute("DELETE FROM stems WHERE passages = 0 AND stem IN (SELECT term FROM apart_terms)")
