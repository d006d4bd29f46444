"""Texts that hide a few facts among many, or list nothing but facts (as RULER's retrieval tasks, Hsieh et al. 2024)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .general import LISTED_WORDS
from .people import Document

NEEDLE = "The secret number of the {key} is {value}."
ASK_ONE = "What is the secret number of the {key}?"
ASK_ALL = "Name all secret numbers of the {key}."
ENTRY = "{key}: {value}."
LOOK_UP = "What stands after {key}?"
NUMBERS = range(10, 100)
SINGLE_KEYS, VALUES = 5, 3


@dataclass(frozen=True)
class Lookup:
    """A question whose answer is all of ``values``, in the text's order."""

    text: str
    values: tuple[str, ...]


def hidden_numbers(hay: Document, rng: random.Random) -> tuple[str, list[Lookup]]:
    """Secret numbers at random places between the sentences of ``hay``, and questions that ask for them.

    ``SINGLE_KEYS`` things have one number each, asked for first; the last has ``VALUES`` of them, asked for at once.
    """
    keys = rng.sample(LISTED_WORDS, SINGLE_KEYS + 1)
    numbers = [str(number) for number in rng.sample(NUMBERS, SINGLE_KEYS + VALUES)]
    needles = list(zip(keys + keys[-1:] * (VALUES - 1), numbers, strict=True))
    sentences = [fact.sentence for fact in hay.facts]
    for key, value in needles:
        sentences.insert(rng.randint(0, len(sentences)), NEEDLE.format(key=key, value=value))
    text = " ".join(sentences)
    single = [Lookup(ASK_ONE.format(key=key), (value,)) for key, value in needles[:SINGLE_KEYS]]
    several = sorted(numbers[SINGLE_KEYS:], key=lambda value: text.index(NEEDLE.format(key=keys[-1], value=value)))
    return text, [*single, Lookup(ASK_ALL.format(key=keys[-1]), tuple(several))]


def key_values(rng: random.Random, entries: int) -> tuple[str, list[Lookup]]:
    """A list of ``entries`` pairs: a key of two words, all different, and a number."""
    keys = rng.sample([f"{left} {right}" for left in LISTED_WORDS for right in LISTED_WORDS if left != right], entries)
    values = [str(rng.choice(NUMBERS)) for _ in keys]
    text = " ".join(ENTRY.format(key=key, value=value) for key, value in zip(keys, values, strict=True))
    return text, [Lookup(LOOK_UP.format(key=key), (value,)) for key, value in zip(keys, values, strict=True)]


def absent_number(text: str, rng: random.Random) -> str:
    """A question for a secret number that ``text`` does not tell."""
    told = set(text.split())
    return ASK_ONE.format(key=rng.choice([word for word in LISTED_WORDS if word not in told]))


def absent_entry(text: str, rng: random.Random) -> str:
    """A question for a pair of words that ``text`` does not list."""
    while True:
        key = " ".join(rng.sample(LISTED_WORDS, 2))
        if f"{key}:" not in text:
            return LOOK_UP.format(key=key)
