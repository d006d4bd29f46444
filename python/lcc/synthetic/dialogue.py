"""Conversations about a fictional document, in which people are named once and meant later."""

from __future__ import annotations

import random
import re

from .people import ATTRIBUTES, Document, Fact, Question

FEMININE = frozenset(
    "Ada Carla Elena Greta Ines Kira Mara Olga Rosa Tessa Vera Yara Alma Celia Edith Gloria Irma Klara Mina Petra Rita "
    "Thea Viola Wanda".split()
)
ELLIPSIS = "And {n}?"
FEMININE_PRONOUNS, MASCULINE_PRONOUNS = ("she", "her"), ("he", "him")
# How likely a turn asks on about the same person, or the same of another person; else it starts afresh.
SAME_PERSON, SAME_ATTRIBUTE = 0.6, 0.2


def dialogue(doc: Document, rng: random.Random, turns: int, wordings: int | None = None) -> list[Question]:
    """A conversation: the first turn names a person, later ones may say ``she``, ``he`` or ``And Hugo?``.

    ``wordings``: how many of each attribute's are used, from the first (None: all).
    """
    fact = rng.choice(doc.facts)
    asked = [doc.question(fact, rng, wordings)]
    for _ in range(turns - 1):
        fact, question = _next_turn(doc, fact, rng, wordings)
        asked.append(question)
    return asked


def _next_turn(doc: Document, last: Fact, rng: random.Random, wordings: int | None) -> tuple[Fact, Question]:
    """The next turn after one about ``last``."""
    draw = rng.random()
    same_person = [f for f in doc.facts if f.name == last.name and f.attribute != last.attribute]
    same_attribute = [f for f in doc.facts if f.attribute == last.attribute and f.name != last.name]
    if draw < SAME_PERSON and same_person:
        fact = rng.choice(same_person)
        wording = rng.choice(ATTRIBUTES[fact.attribute].questions[:wordings])
        return fact, Question(with_pronoun(wording, fact.name), fact.value)
    if draw < SAME_PERSON + SAME_ATTRIBUTE and same_attribute:
        fact = rng.choice(same_attribute)
        return fact, Question(ELLIPSIS.format(n=fact.name), fact.value)
    fact = rng.choice(doc.facts)
    return fact, doc.question(fact, rng, wordings)


def with_pronoun(wording: str, name: str) -> str:
    """``wording`` with ``name``'s pronoun for ``{n}``: the object's after ``of``, else the subject's."""
    subject, other = FEMININE_PRONOUNS if name in FEMININE else MASCULINE_PRONOUNS
    return re.sub(r"\bof \{n\}", f"of {other}", wording).format(n=subject)
