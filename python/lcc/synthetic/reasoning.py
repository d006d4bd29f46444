"""Questions about a fictional document that take more than one of its sentences."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from itertools import permutations

from .people import ATTRIBUTES, Document, Question

# A person by the value of an attribute.
DESCRIPTIONS = {
    "town": "the person who lives in {v}",
    "job": "the person who works as a {v}",
    "pet": "the person who keeps a {v}",
    "color": "the person whose favorite color is {v}",
    "food": "the person who likes to eat {v}",
    "instrument": "the person who plays the {v}",
    "month": "the person who was born in {v}",
    "age": "the person whose age is {v}",
}
OLDER, YOUNGER = "Who is older, {} or {}?", "Who is younger, {} or {}?"
OLDEST, YOUNGEST = "Who is the oldest person in the text?", "Who is the youngest person in the text?"
PEOPLE = "How many people are in the text?"
TOLD = "Of how many people does the text tell the {}?"
ABOVE = "How many people are older than {}?"


def described_questions(doc: Document, wordings: int | None = None) -> list[Question]:
    """Questions about somebody who is described by another fact: two sentences joined.

    The answer names the person first. ``wordings``: how many of each attribute's, from the first (None: all).
    """
    shared = Counter((fact.attribute, fact.value) for fact in doc.facts)
    return [
        Question(wording.format(n=DESCRIPTIONS[clue.attribute].format(v=clue.value)), f"{fact.name}: {fact.value}")
        for clue in doc.facts
        for fact in doc.facts
        if clue.name == fact.name and clue.attribute != fact.attribute and shared[clue.attribute, clue.value] == 1
        for wording in ATTRIBUTES[fact.attribute].questions[:wordings]
    ]


def comparisons(doc: Document) -> list[Question]:
    """Which of two people is older or younger: two sentences compared. The answer tells both ages first."""
    ages = _ages(doc)
    return [
        Question(
            wording.format(left, right),
            f"{left} {ages[left]}, {right} {ages[right]}: {pick((left, right), key=ages.__getitem__)}",
        )
        for left, right in permutations(ages, 2)
        if ages[left] != ages[right]
        for wording, pick in ((OLDER, max), (YOUNGER, min))
    ]


def aggregate_questions(doc: Document, rng: random.Random) -> list[Question]:
    """Questions that take the whole text: counts of people, and the age and name of the oldest and the youngest.

    A count's answer lists what it counts first, people or values, in the order in which the text mentions them.
    """
    told: dict[str, list[str]] = {}
    for fact in doc.facts:
        told.setdefault(fact.attribute, []).append(fact.value)
    questions = [_count(PEOPLE, dict.fromkeys(fact.name for fact in doc.facts))]
    questions += [_count(TOLD.format(attribute), values) for attribute, values in sorted(told.items())]
    ages = _ages(doc)
    values = sorted(ages.values())
    if len(values) > 1:
        limit = rng.choice(range(30, 70, 10))
        questions.append(_count(ABOVE.format(limit), [str(age) for age in ages.values() if age > limit]))
    if len(values) > 1 and values[-1] > values[-2]:
        questions.append(Question(OLDEST, f"{values[-1]}: {max(ages, key=ages.__getitem__)}"))
    if len(values) > 1 and values[0] < values[1]:
        questions.append(Question(YOUNGEST, f"{values[0]}: {min(ages, key=ages.__getitem__)}"))
    return questions


def _count(question: str, counted: Collection[str]) -> Question:
    return Question(question, f"{', '.join(counted)}: {len(counted)}" if counted else "0")


def _ages(doc: Document) -> dict[str, int]:
    return {fact.name: int(fact.value) for fact in doc.facts if fact.attribute == "age"}
