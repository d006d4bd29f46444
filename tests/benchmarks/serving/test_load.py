"""The load of servers: what counts as wrong and as lost, against the real server for a moment."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.serving import dtypes
from benchmarks.serving.client import Reply, load
from benchmarks.serving.load import summary, table
from benchmarks.serving.memories import Case, Source, invented, make_memories, stories
from lcc.inference.asking import ask_text
from tests.support.served import BASE, fill_shelf, made_text, running


@pytest.fixture(scope="module")
def loaded(_embedded):
    return _embedded


@pytest.fixture(scope="module")
def shelf(loaded, tmp_path_factory):
    return fill_shelf(*loaded, tmp_path_factory.mktemp("shelf"))


def test_answers_are_compared_and_every_client_asks(loaded, shelf):
    row, text = shelf.rows[0], made_text(0).text
    (from_text,) = ask_text(*loaded, text, [row.question])
    right = Case(row.memory, text, row.question, row.answer, from_text)
    wrong = Case(row.memory, text, row.question, "something else", "something else")
    lost = Case("nobody", "", row.question, "", "")
    with running(*loaded, shelf.folder) as server:
        for way in ("memory", "text"):
            replies = asyncio.run(load(server.root, BASE, [right], way, concurrency=3, seconds=0, new_tokens=24))
            assert [(reply.status, reply.right) for reply in replies] == [(200, True)] * 3
            assert all(0 < reply.first <= reply.whole for reply in replies)
        replies = asyncio.run(load(server.root, BASE, [right, wrong, lost], "memory", 4, seconds=2, new_tokens=24))
    figures = summary(replies, 2)
    assert figures["requests"] == len(replies) > 4
    assert 0 < figures["lost"] == sum(reply.status == 404 for reply in replies)
    assert 0 < figures["wrong"] == sum(reply.text == row.answer and not reply.right for reply in replies)


def test_a_server_that_is_not_there_loses_everything():
    case = Case("m", "", "Who?", "", "")
    replies = asyncio.run(load("http://127.0.0.1:9", BASE, [case], "memory", 2, seconds=0, new_tokens=1))
    assert summary(replies, 1.0) | {"requests": 2, "lost": 2, "answers_per_second": 0.0} == summary(replies, 1.0)


def test_percentiles_are_of_answers_alone():
    replies = [Reply(n / 100, n / 50, 200, True, "") for n in range(1, 101)] + [Reply(9.0, 9.0, 503, False, "")]
    figures = summary(replies, 10)
    assert figures["first_p50"] == pytest.approx(0.505)
    assert figures["first_p99"] == pytest.approx(0.99, abs=0.01)
    assert figures["answers_per_second"] == 10
    row = figures | {"engine": "vllm", "way": "memory", "mib_before": 1, "mib_after": 2}
    assert "| vllm | memory | 10.0 | 0.51 s | 0.99 s |" in table([row])
    counted = {"engine": "vllm", "dtype": "bfloat16", "answers": 8, "same": 7}
    assert "| vllm | bfloat16 | 8 | 87.5% |" in dtypes.table([counted])


def test_memories_are_made_once(loaded, tmp_path):
    source = Source("one", made_text(1).text, ("Where?",))
    options = {"compiler": "attention_matching", "ratio": 4.0}
    cases = make_memories(tmp_path, *loaded, [source], 8, **options)
    state = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert state.keys() == {"one.lcc.safetensors", "questions.json"}
    assert make_memories(tmp_path, *loaded, [source], 8, **options) == cases
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == state
    assert [one.name for one in invented(2, 60)] == ["document-0", "document-1"]
    assert stories(1)[0].questions
