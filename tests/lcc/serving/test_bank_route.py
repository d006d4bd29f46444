"""``lcc serve --bank``: chats that name no memory are answered by a bank."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

import lcc
from lcc.serving.bank_answers import BankAnswers
from tests.support.served import BASE, chat_body, is_error, made_text, running


@pytest.fixture(scope="module")
def bank(loaded, shelf, tmp_path_factory):
    with lcc.MemoryBank(tmp_path_factory.mktemp("bank") / "bank", create=True) as bank:
        for number, (name, memory) in enumerate(shelf.memories.items()):
            bank.put(name, memory, made_text(number).text)
        yield bank


@pytest.fixture(scope="module")
def opened(loaded, bank):
    return bank.open(*loaded, router="score", gate="none")


@pytest.fixture(scope="module")
def answers(opened, shelf):
    """What the bank itself says to each question."""
    answers = dict(zip(shelf.rows, opened.ask([row.question for row in shelf.rows], 24), strict=True))
    assert sum(answer.text == row.answer for row, answer in answers.items()) > 0.5 * len(answers)
    return answers


@pytest.fixture(scope="module")
def bank_server(loaded, bank, opened):
    with running(*loaded, bank.path / "memories", bank=BankAnswers(opened)) as server:
        yield server


@pytest.fixture
def http(bank_server):
    with httpx.Client(base_url=bank_server.url, timeout=30) as http:
        yield http


def post(http, *arguments, **more) -> httpx.Response:
    return http.post("/chat/completions", json=chat_body(*arguments, **more))


def test_the_bank_chooses_the_memory(http, answers):
    for row, answer in answers.items():
        said = post(http, row.question).json()
        assert said["choices"][0]["message"]["content"] == answer.text
        assert said["bank"] == {"source": answer.source, "keys": list(answer.keys), "reason": answer.reason}
        assert "memory" not in said


def test_a_stream_says_the_same(http, shelf):
    row = shelf.rows[0]
    text = post(http, row.question, stream=True).text
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    events = [json.loads(event) for event in events]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == row.answer
    assert events[0]["bank"]["keys"] == [row.memory]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_memory_that_is_named_is_asked_itself(http, shelf):
    row, other = shelf.rows[0], next(name for name in shelf.memories if name != shelf.rows[0].memory)
    said = post(http, row.question, other).json()
    assert (said["memory"]["id"], "bank" in said) == (other, False)
    said = post(http, row.question, model=f"{BASE}:{row.memory}").json()
    assert (said["memory"]["id"], said["choices"][0]["message"]["content"]) == (row.memory, row.answer)


def test_many_at_once(http, answers):
    """Questions to the bank and to its memories."""
    asked = [(row, named) for row in answers for named in (None, row.memory)]
    expected = [answers[row].text if named is None else row.answer for row, named in asked]

    def ask(row, named):
        return post(http, row.question, named).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, *zip(*asked, strict=True))) == expected


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 1}, "temperature"),
        ({"n": 2}, "temperature"),
        ({"stop": "a"}, "temperature"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\0"}]}, None),
        (
            {"messages": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "Who?"}]},
            "messages",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Who?"},
                    {"role": "assistant", "content": "Ada"},
                    {"role": "user", "content": "Where?"},
                ]
            },
            "messages",
        ),
    ],
)
def test_what_a_bank_does_not_know(http, more, param):
    response = post(http, "Who?", **more)
    if param is None:
        assert response.status_code == 200
    else:
        assert is_error(response.json(), 400)
        assert response.json()["error"]["param"] == param


def test_questions_of_any_characters(http):
    for question in ('"', "' OR 1=1 --", "NEAR(a b)", "a* AND", "*", "(", "<|im_end|>", "\0\0", "é" * 500, "-" * 99):
        assert post(http, question, max_tokens=2).status_code == 200


def test_completions_are_the_models(http):
    said = http.post("/completions", json={"prompt": "The", "max_tokens": 2}).json()
    assert "bank" not in said


def test_a_memory_that_is_damaged_is_left_out(http, bank, shelf):
    row = shelf.rows[0]
    path = bank.path / "memories" / f"{row.memory}.lcc.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:99])
    try:
        said = post(http, row.question).json()
        assert row.memory not in said["bank"]["keys"]
        assert is_error(post(http, row.question, row.memory).json(), 503)
    finally:
        path.write_bytes(whole)
    assert post(http, row.question).json()["bank"]["keys"] == [row.memory]
