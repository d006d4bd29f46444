"""BM25 of passages (Robertson and Zaragoza 2009, section 3), in a time that common words cannot stretch."""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

K1, B = 1.2, 0.75
# Words of a query that are looked up: a text in place of a question has thousands.
QUERY_WORDS = 64
# Postings that candidates are taken from, candidates that are scored, and those of one document among them.
POSTINGS, CANDIDATES, OF_ONE_DOCUMENT = 25_000, 256, 8
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


def best_passages(
    connection: sqlite3.Connection, query: str, frequencies: dict[str, int], totals: tuple[int, int]
) -> list[Scored]:
    """The best passages for a query, the best first.

    A passage's score is exact: it counts every term of the query. Candidates are the passages with the rarest terms: as
    many terms as have ``POSTINGS`` together. Where even the rarest has more, they are some with all terms, or with it.

    Args:
        connection: a database as ``database.open_database`` gives it, in a transaction.
        frequencies: in how many passages stems are, as far as it is known; what is looked up is added.
        totals: the number of passages, and of their words.
    """
    asked = _terms(connection, query, frequencies)
    weights = {term.stem: math.log1p((totals[0] - term.passages + 0.5) / (term.passages + 0.5)) for term in asked}
    terms = [term for term in asked if term.passages]
    if not terms:
        return []
    if terms[0].passages <= POSTINGS:
        candidates = _likeliest(_sums(connection, terms, weights))
    else:
        together = " ".join(_quoted(term) for term in terms)
        candidates = _matching(connection, together, CANDIDATES)
        candidates = candidates or _matching(connection, _quoted(terms[0]), CANDIDATES)
    scored = _scored(connection, candidates, weights, totals[1] / totals[0])
    return sorted(scored, key=lambda passage: (-passage.score, passage.number))


def _terms(connection: sqlite3.Connection, query: str, frequencies: dict[str, int]) -> list[Term]:
    """The query's terms, the rarest first."""
    words = list(dict.fromkeys(_WORD.findall(query)))[:QUERY_WORDS]
    with _taken_apart(connection, enumerate(words)):
        rows = connection.execute("SELECT term, min(doc) FROM apart_terms GROUP BY term").fetchall()
    terms = []
    for stem, number in rows:
        if stem not in frequencies:
            found = connection.execute("SELECT doc FROM frequencies WHERE term = ?", (stem,)).fetchone()
            frequencies[stem] = found[0] if found else 0
        terms.append(Term(words[number], stem, frequencies[stem]))
    return sorted(terms, key=lambda term: (term.passages, term.stem))


@contextmanager
def _taken_apart(connection: sqlite3.Connection, texts: Iterable[tuple[int, str]]) -> Iterator[None]:
    """The stems of numbered texts in ``temp.apart_terms`` inside the block, which a transaction is around."""
    connection.execute("SAVEPOINT apart")
    try:
        connection.executemany("INSERT INTO apart(rowid, body) VALUES (?, ?)", texts)
        yield
    finally:
        connection.execute("ROLLBACK TO apart")
        connection.execute("RELEASE apart")


def _sums(connection: sqlite3.Connection, terms: list[Term], weights: dict[str, float]) -> dict[int, float]:
    """The sum of the weights of the rarest terms, for each passage that has some of them."""
    sums: dict[int, float] = defaultdict(float)
    left = POSTINGS
    for term in terms:
        left -= term.passages
        if left < 0:
            break
        for passage in _matching(connection, _quoted(term)):
            sums[passage] += weights[term.stem]
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
    with _taken_apart(connection, bodies.items()):
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
