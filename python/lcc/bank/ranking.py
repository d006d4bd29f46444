"""BM25 of passages (Robertson and Zaragoza 2009, section 3), in a time that common words cannot stretch."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from .database import taken_apart

K1, B = 1.2, 0.75
# Words of a query that are looked up: a text in place of a question has thousands.
QUERY_WORDS = 64
# Postings that candidates are taken from, candidates that are scored, and those of one document among them.
POSTINGS, CANDIDATES, OF_ONE_DOCUMENT = 10_000, 256, 8
# A passage's id is its document's, shifted, and its own number.
NUMBER_BITS = 20
# What no tokenizer of FTS5 splits any further, and nothing in its query language but a word.
_WORD = re.compile(r"[^\W_]+")


class Term(NamedTuple):
    """A word of the query, the stem that the index has it by, and in how many passages that is."""

    word: str
    stem: str
    passages: int


class Scored(NamedTuple):
    """A passage with its BM25, and the share that this is of a mean passage's with all words of the query."""

    number: int
    score: float
    share: float
    body: str


def best_passages(connection: sqlite3.Connection, query: str) -> list[Scored]:
    """The best passages for a query, the best first.

    A passage's score is exact: it counts every term of the query. Candidates are the passages with the rarest terms: as
    many terms as have ``POSTINGS`` together. Where even the rarest has more, they are some with the two rarest.

    Args:
        connection: a database as ``database.open_database`` gives it, in a transaction.
    """
    asked = _terms(connection, query)
    terms = [term for term in asked if term.passages]
    if not terms:
        return []
    passages, words = connection.execute("SELECT sum(passages), sum(words) FROM documents").fetchone()
    weights = {term.stem: math.log1p((passages - term.passages + 0.5) / (term.passages + 0.5)) for term in asked}
    if terms[0].passages <= POSTINGS:
        candidates = _likeliest(_sums(connection, terms, weights))
    else:
        both = " ".join(map(_quoted, terms[:2]))
        candidates = _matching(connection, both, CANDIDATES) or _matching(connection, _quoted(terms[0]), CANDIDATES)
    scored = _scored(connection, candidates, weights, words / passages)
    return sorted(scored, key=lambda passage: (-passage.score, passage.number))


def _terms(connection: sqlite3.Connection, query: str) -> list[Term]:
    """The query's terms, the rarest first."""
    words = list(dict.fromkeys(_WORD.findall(query)))[:QUERY_WORDS]
    with taken_apart(connection, enumerate(words)):
        rows = connection.execute(
            "SELECT min(doc), term, coalesce(passages, 0) FROM apart_terms LEFT JOIN stems ON stem = term GROUP BY term"
        ).fetchall()
    return sorted((Term(words[number], *row) for number, *row in rows), key=lambda term: (term.passages, term.stem))


def _sums(connection: sqlite3.Connection, terms: list[Term], weights: dict[str, float]) -> dict[int, float]:
    """The sum of the weights of the rarest terms, for each passage that has some of them."""
    sums: dict[int, float] = {}
    left = POSTINGS
    for term in terms:
        left -= term.passages
        if left < 0:
            break
        weight = weights[term.stem]
        for passage in _matching(connection, _quoted(term)):
            sums[passage] = sums.get(passage, 0.0) + weight
    return sums


def _likeliest(sums: dict[int, float]) -> list[int]:
    """The passages with the largest sums, a few a document at most."""
    alike = defaultdict(list)
    for passage, total in sums.items():
        alike[total].append(passage)
    chosen: list[int] = []
    of_document: Counter[int] = Counter()
    for total in sorted(alike, reverse=True):
        for passage in alike[total]:
            document = passage >> NUMBER_BITS
            if of_document[document] < OF_ONE_DOCUMENT:
                of_document[document] += 1
                chosen.append(passage)
            if len(chosen) == CANDIDATES:
                return chosen
    return chosen


def _quoted(term: Term) -> str:
    return f'"{term.word}"'


def _matching(connection: sqlite3.Connection, match: str, limit: int = -1) -> list[int]:
    rows = connection.execute("SELECT rowid FROM terms WHERE terms MATCH ? LIMIT ?", (match, limit))
    return [passage for (passage,) in rows]


def _scored(
    connection: sqlite3.Connection, passages: list[int], weights: dict[str, float], mean_words: float
) -> Iterator[Scored]:
    places = ", ".join("?" * len(passages))
    bodies = dict(connection.execute(f"SELECT id, body FROM passages WHERE id IN ({places})", passages))
    with taken_apart(connection, bodies.items()):
        places = ", ".join("?" * len(weights))
        counts = connection.execute(
            f"SELECT doc, term, count(*) FROM apart_terms WHERE term IN ({places}) GROUP BY doc, term", list(weights)
        ).fetchall()
    scores: dict[int, float] = defaultdict(float)
    for passage, stem, count in counts:
        length = len(bodies[passage].split()) / mean_words
        scores[passage] += weights[stem] * count * (K1 + 1) / (count + K1 * (1 - B + B * length))
    whole = sum(weights.values())
    return (Scored(passage, score, score / whole, bodies[passage]) for passage, score in scores.items())
