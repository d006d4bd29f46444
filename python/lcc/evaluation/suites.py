"""Suites of our own generators: seeded, offline, and without a word that a model may have read before.

Documents are drawn from seeds far from those of the embedded model's training, the demo and its exam.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..synthetic.dialogue import dialogue
from ..synthetic.exam import general_exam
from ..synthetic.needles import Lookup, hidden_numbers, key_values
from ..synthetic.people import Document, Question, document, people_for
from ..synthetic.reasoning import aggregate_questions, comparisons, described_questions
from ..synthetic.seeds import SUITES as SUITES_SEED
from ..text.queries import load_queries
from ..utils.random_state import sample_up_to
from .examples import Example

# Lengths of documents in words and punctuation marks, about the tokens of the embedded model's tokenizer.
LENGTHS = (300, 700, 1300, 1900)
QUESTIONS, DIALOGUES, TURNS, GENERAL = 10, 3, 4, 30
ENTRY_WORDS = 5.0
# What the longest answer takes, a list of who is in 1,900 words, and some.
ANSWER_TOKENS = 80
Item = TypeVar("Item")


def fiction(rng: random.Random, words: int) -> list[Example]:
    """Easy: one sentence answers; medium: two, joined or compared; hard: the whole text, counted or compared."""
    return _levels(_document(rng, words), rng)


def dialogues(rng: random.Random, words: int) -> list[Example]:
    """Conversations with pronouns; earlier turns carry the true answers (as in CoQA)."""
    return _conversations(_document(rng, words), rng)


def reading(rng: random.Random, words: int) -> list[Example]:
    """Fiction's questions and dialogues about one document."""
    doc = _document(rng, words)
    return _levels(doc, rng) + _conversations(doc, rng)


def needle(rng: random.Random, words: int) -> list[Example]:
    """Secret numbers of several things hidden in a fictional document; one thing has several, all asked for."""
    text, lookups = hidden_numbers(_document(rng, words), rng)
    return [_lookup(text, asked, "needle" if len(asked.values) == 1 else "needle, several values") for asked in lookups]


def key_value(rng: random.Random, words: int) -> list[Example]:
    """A long list of pairs."""
    text, lookups = key_values(rng, round(words / ENTRY_WORDS))
    return [_lookup(text, asked, "key value") for asked in sample_up_to(rng, lookups, QUESTIONS)]


SUITES: dict[str, Callable[[random.Random, int], list[Example]]] = {
    "fiction": fiction,
    "dialogue": dialogues,
    "reading": reading,
    "needle": needle,
    "key_value": key_value,
}


def suite(name: str, documents: int, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[Example]:
    """The examples of one of ``SUITES``: ``documents`` drawn, their lengths taken from ``lengths`` in turn."""
    return [
        example
        for index in range(documents)
        for example in SUITES[name](
            random.Random(f"{SUITES_SEED} {name} {seed} {index}"), lengths[index % len(lengths)]
        )
    ]


def general_queries(seed: int = 0, count: int = GENERAL) -> list[Example]:
    """Queries that need no text, none of them among those that compile asks by default."""
    exam = general_exam(random.Random(f"{SUITES_SEED} general {seed}"), count, load_queries())
    return [_exact("", query, "general") for query in exam]


def _levels(doc: Document, rng: random.Random) -> list[Example]:
    half = QUESTIONS // 2
    levels = {
        "fiction easy": sample_up_to(rng, doc.questions(), QUESTIONS),
        "fiction medium": sample_up_to(rng, described_questions(doc), half) + sample_up_to(rng, comparisons(doc), half),
        "fiction hard": sample_up_to(rng, aggregate_questions(doc, rng), QUESTIONS),
    }
    return [_exact(doc.text, question, task) for task, questions in levels.items() for question in questions]


def _conversations(doc: Document, rng: random.Random) -> list[Example]:
    examples = []
    for _ in range(DIALOGUES):
        turns = dialogue(doc, rng, TURNS)
        history = tuple((turn.text, turn.answer) for turn in turns)
        examples += [
            _exact(doc.text, turn, "dialogue" if number else "dialogue opening", history[:number])
            for number, turn in enumerate(turns)
        ]
    return examples


def _document(rng: random.Random, words: int) -> Document:
    attributes = rng.randint(5, 7)
    return document(rng, people_for(words, attributes), attributes)


def _exact(text: str, question: Question, task: str, history: tuple[tuple[str, str], ...] = ()) -> Example:
    return Example(text, question.text, (question.answer,), "", ANSWER_TOKENS, task, "exact_match", history)


def _lookup(text: str, asked: Lookup, task: str) -> Example:
    return Example(text, asked.text, asked.values, "", ANSWER_TOKENS, task, "string_match")
