"""A search by words: in the order of BM25, whatever the query holds, also where every word is common."""

from __future__ import annotations

import math
import threading
from contextlib import suppress

import pytest

from lcc.bank import ranking
from lcc.bank.index import BankIndex, Document, Files
from lcc.bank.passages import Passage


@pytest.fixture
def index(tmp_path):
    index = BankIndex(tmp_path / "bank.sqlite")
    yield index
    index.close()


def fill(index, passages, status="ok"):
    """Put a document for each key, with its passages."""
    with index.writing():
        for key, bodies in passages.items():
            index.put(Document(key, Files(1, 1), status), [Passage("question", body) for body in bodies])


def found(index, query, k=5):
    return [hit.key for hit in index.search(query, k)]


def bm25(words, passage, passages):
    """By the formula alone; all words are their own stems."""
    score, mean = 0.0, sum(len(each.split()) for each in passages) / len(passages)
    for word in words:
        having = sum(word in each.split() for each in passages)
        count = passage.split().count(word)
        idf = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
        score += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(passage.split()) / mean))
    return score


def test_a_score_is_the_best_passages_bm25(index):
    passages = {"one": ["cat dog", "cat cat cat fish"], "two": ["fish bird tree stone"], "three": ["cat", "dog bird"]}
    fill(index, passages)
    every = [body for bodies in passages.values() for body in bodies]
    hits = index.search("cat fish cat")
    expected = {key: max(bm25(["cat", "fish"], body, every) for body in bodies) for key, bodies in passages.items()}
    assert [hit.key for hit in hits] == sorted(expected, key=expected.get, reverse=True)
    assert {hit.key: hit.score for hit in hits} == pytest.approx(expected)
    assert hits[0].passage == "cat cat cat fish"


def test_counts_follow_what_is_replaced_and_dropped(index, tmp_path):
    fill(index, {"one": ["cat cat dog"], "two": ["cat"], "three": ["tree"]})
    fill(index, {"one": ["dog"], "four": ["cat", "cat tree"]})
    with index.writing():
        index.drop("two")
        index.drop("absent")
    fresh = BankIndex(tmp_path / "fresh.sqlite")
    fill(fresh, {"three": ["tree"], "one": ["dog"], "four": ["cat", "cat tree"]})
    for query in ("cat", "dog tree", "cat dog tree"):
        assert index.search(query) == fresh.search(query)
    assert found(index, "cat") == ["four"]
    assert index.check() is None
    fresh.close()


@pytest.mark.parametrize(
    "query",
    ["cat AND OR NOT NEAR( * \" ^ - :", '"cat" "', "body:cat", "{body} : cat*", "cat'); DROP TABLE documents; --",
     "cat_", "-cat", "CAT", "cats", "the unknown\0cat\ud800", "cat " * 5000],
)  # fmt: skip
def test_a_query_is_plain_text(index, query):
    fill(index, {"one": ["cat"], "two": ["tree"]})
    assert found(index, query) == ["one"]


@pytest.mark.parametrize("query", ["", "  ", '"', "*", "AND", "unknown words", "^ - ( )", "\ud800", "🙂"])
def test_a_query_without_a_word_that_is_known_finds_nothing(index, query):
    assert index.search(query) == []
    fill(index, {"one": ["cat"]})
    assert index.search(query) == []


@pytest.mark.parametrize(
    ("passage", "query"),
    [("Où est Zoë née ?", "zoe"), ("Zoe\u0301 swims", "zoé"), ("Где живёт Марина?", "марина"), ("東京 に住む", "東京"),
     ("मारा ओस्लो में", "ओस्लो"), ("Straße 5", "strasse straße"), ("don't panic", "DON'T")],
)  # fmt: skip
def test_words_of_any_language(index, passage, query):
    fill(index, {"one": ["nothing"], "two": [passage]})
    assert found(index, query) == ["two"]


def test_rare_words_count_where_reading_all_postings_would_take_too_long(index, monkeypatch):
    fill(index, {f"d{number}": ["what is the name"] * 3 + [f"what is the rare{number} name"] for number in range(50)})
    monkeypatch.setattr(ranking, "POSTINGS", 10)
    monkeypatch.setattr(ranking, "CANDIDATES", 12)
    read = []
    index._connection.set_trace_callback(read.append)
    assert found(index, "what is the name of rare7") == ["d7"]
    matched = [statement for statement in read if statement.startswith("SELECT rowid")]
    assert len(matched) == 1
    assert '"rare7"' in matched[0]
    # Without one, some that have the words.
    assert len(found(index, "what is the name", 3)) == 3
    assert found(index, "what unknown", 1)


def test_a_document_of_many_passages_leaves_room_for_others(index, monkeypatch):
    monkeypatch.setattr(ranking, "CANDIDATES", 20)
    fill(index, {"long": [f"whale {number}" for number in range(100)], "short": ["a whale in a short text"]})
    assert set(found(index, "whale")) == {"long", "short"}


def test_threads_share_an_index(index):
    fill(index, {"one": ["cat"], "two": ["tree"]})
    wrong = []

    def search():
        wrong.extend(hits for _ in range(50) if (hits := found(index, "cat")) != ["one"])

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    fill(index, {f"d{number}": ["stone"] for number in range(20)})
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_a_writer_began_and_did_not_end_is_not_there(index):
    fill(index, {"one": ["cat"]})
    with suppress(KeyError), index.writing():
        index.put(Document("two", Files(1, 1), "ok"), [Passage("question", "cat dog")])
        raise KeyError
    assert found(index, "cat dog") == ["one"]
    assert index.check() is None
