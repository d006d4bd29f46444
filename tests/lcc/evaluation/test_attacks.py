"""Attacks on a reader, and the exposure of canaries."""

from __future__ import annotations

import random

import pytest

import lcc
from lcc.evaluation import attacks
from lcc.evaluation.attacks import Attacker
from lcc.evaluation.canaries import ALTERNATIVES, Shapes, exposure
from lcc.inference.reader import Reader
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat

TEXT = document(random.Random(3), people=4, attributes=4).text


def test_alternatives_have_the_canarys_shape(embedded):
    tokenizer = embedded[1]
    chat = ChatFormat.of(tokenizer)
    shapes, canary = Shapes(chat), tuple(chat.ids("Mara is 42."))
    others = shapes.alternatives(canary, "seed")
    assert len(set(others)) == len(others) == ALTERNATIVES
    assert canary not in others
    for other in others:
        name, _, age, stop = (tokenizer.decode([token]) for token in other)
        assert name[0].isupper()
        assert age.isdigit()
        assert len(age) == 2
        assert stop == "."
    # Few two-digit numbers are tokens: there are no more others than that.
    assert len(shapes.alternatives(tuple(chat.ids("42")), "seed")) < 100
    assert shapes.alternatives(tuple(chat.ids(".")), "seed") == []


def test_exposure_is_of_the_rank(embedded, monkeypatch):
    reader = Reader.of_text(embedded[0], ChatFormat.of(embedded[1]), TEXT)
    likely = {(0, 1): 0.5, (0, 2): 0.7, (0, 3): 0.5, (0, 4): 0.1}
    monkeypatch.setattr(Reader, "confidence", lambda self, queries, responses: [likely[each] for each in responses])
    assert exposure(reader, (0,), (2,), [(1,), (3,), (4,)]) == 2
    # What is as likely does not stand before it.
    assert exposure(reader, (0,), (1,), [(2,), (3,), (4,)]) == 1
    assert exposure(reader, (0,), (4,), [(1,), (2,), (3,)]) == 0
    assert exposure(reader, (0,), (4,), []) == 0


def test_answers_go_no_further_than_the_window(embedded):
    model, tokenizer = embedded
    reader = Reader.of_text(model, ChatFormat.of(tokenizer), TEXT)
    model.config.max_position_embeddings = len(reader.visible) + 40
    written = Attacker(tokenizer, [], 10_000, 1, 0).attack(reader, lambda: None)
    assert 0 < max(len(ids) for ids in written["asked"][0]) < 40
    model.config.max_position_embeddings = len(reader.visible)
    with pytest.raises(lcc.InputError, match="window"):
        Attacker(tokenizer, [], 10_000, 1, 0).attack(reader, lambda: None)


def test_each_text_is_reported_once(embedded):
    reader = Reader.of_text(embedded[0], ChatFormat.of(embedded[1]), "")
    told: list[None] = []
    attacker = Attacker(embedded[1], [(5, 6), (7,)], 4, 3, 0)
    written = attacker.attack(reader, lambda: told.append(None))
    assert len(told) == attacker.total == sum(len(one) for each in written.values() for one in each)
    assert {name: len(each[0]) for name, each in written.items()} == attacker.prompts
    assert all(len(ids) <= 2 * attacks.PIECE + 2 for each in written.values() for one in each for ids in one)
