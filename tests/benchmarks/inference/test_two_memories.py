"""The composition benchmark reports both orders, on whatever model."""

from __future__ import annotations

import random

import pytest

import lcc
from benchmarks.inference.two_memories import (
    BESIDE,
    PLACES,
    THERE,
    as_read,
    ask_beside,
    ask_one,
    disjoint_pairs,
    order_rows,
    table,
    text_rows,
)
from lcc.cli.demo import demo_document
from lcc.synthetic.exam import score
from lcc.synthetic.people import document
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

DOCUMENTS = document(random.Random(1), people=1, attributes=3), document(random.Random(4), people=1, attributes=2)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_both_orders_are_reported(family, tokenizer, monkeypatch):
    model = tiny_model(family)
    memories = tuple(plain_memory(model, tokenizer, about.text, monkeypatch)[0] for about in DOCUMENTS)
    rows = order_rows(model, tokenizer, "memories", DOCUMENTS, memories)
    scored = {(row["document"], row["place"]): row for row in rows}
    assert scored.keys() == {
        *((index, place) for index in (0, 1) for place in (*PLACES, *THERE, BESIDE)),
        ("general queries", "alone"), ("general queries", "stacked"), ("general queries", BESIDE),
    }  # fmt: skip
    for index, place, stack in (
        (0, "first", memories), (1, "second", memories),
        (1, "first", memories[::-1]), (0, "second", memories[::-1]), (1, "alone", memories[1:]),
    ):  # fmt: skip
        questions = DOCUMENTS[index].questions()
        answers = lcc.ask(model, tokenizer, list(stack), [question.text for question in questions], max_new_tokens=16)
        assert scored[index, place]["score"] == score(answers, questions)
    shown = table([{"seeds": [0, 1], **row} for row in rows])
    assert len(shown.splitlines()) == 2 + 3
    assert "general queries" in shown


def test_the_readers_read(embedded, tokenizer, monkeypatch):
    """On the embedded model: a text's own K and V answer as the text does, alone; and two texts read as one answer."""
    model, tokenizer = embedded
    blank = plain_memory(model, tokenizer, DOCUMENTS[0].text, monkeypatch)[0]
    plain = tuple(as_read(model, tokenizer, blank, about.text) for about in DOCUMENTS)
    rows = order_rows(model, tokenizer, "K and V read apart", DOCUMENTS, plain)
    assert [row["score"] for row in rows if row["place"] == "alone"][:2] == [1.0, 1.0]
    texts = [question.text for question in DOCUMENTS[1].questions()]
    assert ask_beside(model, tokenizer, plain[1:], texts) == lcc.ask(model, tokenizer, plain[1], texts)
    blind = ask_one(model, tokenizer, list(plain), 0, texts)
    assert blind == lcc.ask(model, tokenizer, plain[0], texts)
    seeing = ask_one(model, tokenizer, list(plain), 1, texts)
    assert seeing == [question.answer for question in DOCUMENTS[1].questions()]
    rows = text_rows(model, tokenizer, DOCUMENTS)
    assert all(row["score"] >= 0.8 for row in rows)


def test_pairs_share_no_name():
    for first, second in disjoint_pairs(6):
        assert not set(demo_document(first).names) & set(demo_document(second).names)
