"""Lessons of texts that neither the embedded model nor any test or benchmark has met, for what is trained beside it."""

from __future__ import annotations

import random

from ..synthetic.seeds import FRESH
from .lessons import counting_lesson, document_lesson, key_value_lesson, needle_lesson
from .packing import Lesson


def fresh_random(number: int) -> random.Random:
    """What draws text ``number``, 0 or more."""
    return random.Random(FRESH + number)


def fresh_lesson(rng: random.Random) -> Lesson:
    """Mostly documents; hidden numbers, lists of pairs and counts beside them; of 40 to 500 tokens."""
    draw = rng.random()
    if draw < 0.75:
        alike = rng.random() < 0.2
        return document_lesson(rng, rng.randint(3, 7), rng.randint(2, 6), alike, reasoning=1, questions=14)
    if draw < 0.85:
        return needle_lesson(rng, rng.randint(3, 5), rng.randint(2, 4))
    if draw < 0.93:
        return key_value_lesson(rng, rng.randint(10, 40))
    return counting_lesson(rng, rng.randint(3, 7), rng.randint(2, 5))
