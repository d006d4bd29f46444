"""The embedded model's curriculum: what each step of each stage is taught.

Copy random words until copying circuits stand; then documents whose people have one, two and four attributes; then
questions that join sentences, count, or say "she"; then full documents under a decaying learning rate, some of 2,000
tokens; a rehearsal of what is weakest; the asking of questions; which of two ages is the greater; texts of up to 2,000
tokens, in each step beside all of it; so too counts, and what a text does not tell.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..synthetic.people import people_for
from .lessons import (
    ages_lesson,
    asking_lesson,
    closed_book_lesson,
    comparing_lesson,
    copying_lesson,
    counting_lesson,
    document_lesson,
    key_value_lesson,
    needle_lesson,
    piece_lesson,
    repeating_lesson,
    untold_lesson,
)
from .packing import Lesson


@dataclass(frozen=True)
class Group:
    """Lessons of like length, packed together, and their weight in a step's loss."""

    weight: float
    lessons: list[Lesson]


@dataclass(frozen=True)
class Stage:
    """Up to ``steps`` batches from ``lessons``.

    A stage with a ``goal`` ends once that kind of exercise has that accuracy; one without decays its learning rate.
    ``rate`` scales the learning rates.
    """

    name: str
    steps: int
    goal: tuple[str, float] | None
    lessons: Callable[[random.Random], list[Group]]
    rate: float = 1.0


def _copying(rng: random.Random) -> list[Group]:
    return [Group(1.0, [copying_lesson(rng, rng.randint(16, 64)) for _ in range(32)])]


def _short_documents(rows: int, people: tuple[int, int], attributes: tuple[int, int], alike: float) -> Callable:
    """Batches of same-sized documents with a text of random words and a closed book among them."""

    def draw(rng: random.Random) -> list[Group]:
        shape = rng.randint(*people), rng.randint(*attributes)
        documents = [document_lesson(rng, *shape, rng.random() < alike, repeat=i % 4 == 0) for i in range(rows)]
        return [Group(1.0, [*documents, copying_lesson(rng, rng.randint(16, 96)), closed_book_lesson(rng)])]

    return draw


def _reasoning(rng: random.Random) -> list[Group]:
    """Small documents with everything that takes more than one sentence, and short lookups."""
    shape = rng.randint(3, 6), rng.randint(3, 5)
    documents = [document_lesson(rng, *shape, rng.random() < 0.5, reasoning=2) for _ in range(8)]
    lookups = [needle_lesson(rng, 3, 4), needle_lesson(rng, 4, 5), key_value_lesson(rng, rng.randint(8, 40))]
    return [
        Group(1.0, documents),
        Group(0.5, [*lookups, closed_book_lesson(rng)]),
        Group(0.4, [repeating_lesson(rng, *shape), copying_lesson(rng, rng.randint(16, 96))]),
    ]


def _full_documents(rng: random.Random) -> list[Group]:
    """Every step asks about long documents, repeats some, looks up, copies random words, and does without a text."""
    shape = rng.randint(5, 8), rng.randint(6, 8)
    words = rng.choice((20, 50, None))
    return [
        Group(1.0, [document_lesson(rng, *shape, rng.random() < 0.3, reasoning=2) for _ in range(6)]),
        Group(0.4, [repeating_lesson(rng, *shape) for _ in range(2)]),
        Group(0.4, [needle_lesson(rng, *shape), key_value_lesson(rng, rng.randint(40, 120))]),
        Group(0.4, [copying_lesson(rng, rng.randint(16, 80), words) for _ in range(6)]),
        Group(0.1, [closed_book_lesson(rng) for _ in range(3)]),
    ]


def _long_documents(rng: random.Random) -> list[Group]:
    """One text of up to 2,000 tokens of each kind, one that is repeated, and the shorter ones beside them."""
    people, attributes = rng.randint(12, 26), rng.randint(5, 7)
    texts = [
        document_lesson(rng, people, attributes, False, reasoning=3),
        needle_lesson(rng, people, attributes),
        key_value_lesson(rng, rng.randint(120, 380)),
    ]
    repeated = rng.choice((repeating_lesson(rng, people, attributes), key_value_lesson(rng, 80, repeat=True)))
    return [Group(0.5, [text]) for text in (*texts, repeated)] + _full_documents(rng)[:1]


def _rehearsal(rng: random.Random) -> list[Group]:
    """What full documents alone leave weakest: repeating without a slip, and asking only what the text answers."""
    shape = rng.randint(5, 8), rng.randint(6, 8)
    return [
        Group(0.7, [document_lesson(rng, *shape, rng.random() < 0.3, reasoning=2) for _ in range(3)]),
        Group(1.0, [repeating_lesson(rng, *shape) for _ in range(4)]),
        Group(0.7, [asking_lesson(rng, *shape) for _ in range(4)]),
        Group(0.4, [needle_lesson(rng, *shape), key_value_lesson(rng, rng.randint(40, 120), True)]),
        Group(0.1, [closed_book_lesson(rng) for _ in range(3)]),
    ]


def _asking(rng: random.Random) -> list[Group]:
    """Asking as self-study does, about pieces of a document and about all of it, beside a little of everything."""
    shape = rng.randint(4, 8), rng.randint(5, 8)
    return [
        Group(0.5, [piece_lesson(rng, *shape, words=rng.randint(20, 70)) for _ in range(6)]),
        Group(1.0, [asking_lesson(rng, *shape) for _ in range(3)]),
        Group(0.7, [comparing_lesson(rng, rng.randint(3, 6), rng.randint(2, 5)) for _ in range(4)]),
        Group(0.5, [document_lesson(rng, *shape, rng.random() < 0.3, reasoning=3) for _ in range(2)]),
        Group(0.4, [repeating_lesson(rng, *shape) for _ in range(2)]),
        Group(0.3, [needle_lesson(rng, *shape), key_value_lesson(rng, rng.randint(40, 120))]),
        Group(0.1, [closed_book_lesson(rng) for _ in range(2)]),
    ]


def _comparing(rng: random.Random) -> list[Group]:
    """Many comparisons of ages in texts of little else, beside all that asking rehearses."""
    return [Group(3.0, [ages_lesson(rng, rng.randint(3, 8)) for _ in range(8)]), *_asking(rng)]


def _long_texts(rng: random.Random) -> list[Group]:
    """A text of 700 to 2,000 tokens of each kind, asked about, repeated and asking, beside all that came before."""
    attributes = rng.randint(5, 7)
    people = people_for(rng.randint(700, 2000), attributes)
    repeated = rng.choice((repeating_lesson(rng, people, attributes), key_value_lesson(rng, 80, repeat=True)))
    return [
        Group(2.0, [document_lesson(rng, people, attributes, False, reasoning=4, questions=30)]),
        Group(0.7, [needle_lesson(rng, people, attributes)]),
        Group(0.7, [key_value_lesson(rng, rng.randint(120, 400))]),
        Group(0.7, [asking_lesson(rng, people, attributes)]),
        Group(1.0, [repeated]),
        Group(1.0, [ages_lesson(rng, rng.randint(3, 8)) for _ in range(4)]),
        *_asking(rng),
    ]


def _counting(rng: random.Random) -> list[Group]:
    """Counts in short texts and in a longer one, beside all that came before, long texts in every other step or so."""
    attributes = rng.randint(5, 7)
    longer = counting_lesson(rng, people_for(rng.randint(300, 1900), attributes), attributes)
    return [
        Group(3.0, [counting_lesson(rng, rng.randint(3, 8), rng.randint(2, 7)) for _ in range(8)]),
        Group(1.5, [longer]),
        *(_long_texts if rng.random() < 0.5 else _comparing)(rng),
    ]


def _counting_and_untold(rng: random.Random) -> list[Group]:
    """Counting goes on beside what a text does not tell, which counting alone unlearns."""
    texts = [untold_lesson(rng, rng.randint(3, 8), rng.randint(3, 7)) for _ in range(2)]
    return [Group(1.0, texts), *_counting(rng)]


def _rounding_off(rng: random.Random) -> list[Group]:
    """Asking and long repetitions, which counting cost a little, beside all else."""
    attributes = rng.randint(5, 7)
    people = people_for(rng.randint(1200, 1900), attributes)
    return [
        Group(2.0, [asking_lesson(rng, rng.randint(2, 8), rng.randint(3, 8)) for _ in range(4)]),
        Group(1.5, [repeating_lesson(rng, people, attributes)]),
        *_counting_and_untold(rng),
    ]


def curriculum(scale: float = 1.0) -> tuple[Stage, ...]:
    """The stages; ``scale`` shortens or lengthens those that no goal ends."""
    stages = (
        Stage("copy", 900, ("repeat", 0.97), _copying),
        Stage("1 attribute", 600, ("question", 0.95), _short_documents(24, (3, 6), (1, 1), alike=1.0)),
        Stage("2 attributes", 500, ("question", 0.95), _short_documents(16, (3, 6), (2, 2), alike=0.8)),
        Stage("4 attributes", 400, ("question", 0.95), _short_documents(10, (4, 7), (3, 5), alike=0.5)),
        Stage("joins", 600, ("join", 0.95), _reasoning),
        Stage("counts", 700, ("count", 0.9), _reasoning),
        Stage("documents", 700, None, _full_documents),
        Stage("long documents", 120, None, _long_documents, rate=0.5),
        Stage("rehearsal", 180, None, _rehearsal, rate=0.5),
        Stage("asking", 260, None, _asking, rate=0.5),
        Stage("comparing", 240, None, _comparing, rate=0.5),
        Stage("long texts", 420, None, _long_texts, rate=0.7),
        Stage("counting", 300, None, _counting, rate=0.5),
        Stage("counting and untold", 300, None, _counting_and_untold, rate=0.5),
        Stage("rounding off", 150, None, _rounding_off, rate=0.5),
    )
    return tuple(stage if stage.goal else replace(stage, steps=int(stage.steps * scale)) for stage in stages)
