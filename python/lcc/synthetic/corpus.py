"""A corpus: many documents about the same people and subjects, each of which alone answers some questions."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import product

from .people import ATTRIBUTES, NAMES, UNKNOWN, Document, Fact, Question

# An attribute of a person, such as ("Ada", "town").
Subject = tuple[str, str]


@dataclass(frozen=True)
class Corpus:
    """Documents that share names and subjects.

    Attributes:
        own: of each document, the subjects that it alone tells of.
        untold: subjects that no document tells of.
    """

    documents: tuple[Document, ...]
    own: tuple[tuple[Subject, ...], ...]
    untold: tuple[Subject, ...]

    def questions(self, number: int, wordings: slice = slice(None)) -> list[Question]:
        """What document ``number`` alone answers, in each of the ``wordings`` of an attribute."""
        facts = {(fact.name, fact.attribute): fact for fact in self.documents[number].facts}
        return [
            Question(wording, facts[subject].value)
            for subject in self.own[number]
            for wording in _wordings(subject, wordings)
        ]

    def unanswerable(self, wordings: slice = slice(None)) -> list[Question]:
        """What no document answers."""
        return [Question(wording, UNKNOWN) for subject in self.untold for wording in _wordings(subject, wordings)]


def draw_corpus(rng: random.Random, documents: int, facts: int, own: int, untold: int = 24) -> Corpus:
    """Draw ``documents`` of so many ``facts`` each.

    Of the facts ``own`` are about subjects that no other document tells of. The others are about subjects that all
    documents draw from, so that a name occurs in many of them, and with another value in each.

    Raises:
        ValueError: there are too few names and attributes.
    """
    subjects = list(product(NAMES, ATTRIBUTES))
    rng.shuffle(subjects)
    common = subjects[documents * own + untold :]
    if len(common) < facts - own:
        raise ValueError(f"{len(subjects)} subjects are too few for {documents} documents with {own} of their own each")
    owned = [tuple(subjects[number * own : (number + 1) * own]) for number in range(documents)]
    drawn = [_document(rng, [*mine, *rng.sample(common, facts - own)]) for mine in owned]
    return Corpus(tuple(drawn), tuple(owned), tuple(subjects[documents * own : documents * own + untold]))


def _document(rng: random.Random, subjects: list[Subject]) -> Document:
    """The facts in random order; no two people share a value, as long as there are enough for all."""
    rng.shuffle(subjects)
    counts = Counter(key for _, key in subjects)
    values = {
        key: iter(rng.sample(ATTRIBUTES[key].values, count)) if count <= len(ATTRIBUTES[key].values) else None
        for key, count in counts.items()
    }
    facts = []
    for name, key in subjects:
        attribute, left = ATTRIBUTES[key], values[key]
        value = rng.choice(attribute.values) if left is None else next(left)
        facts.append(Fact(name, key, value, rng.randrange(len(attribute.statements))))
    return Document(tuple(facts))


def _wordings(subject: Subject, wordings: slice) -> list[str]:
    name, key = subject
    return [wording.format(n=name) for wording in ATTRIBUTES[key].questions[wordings]]
