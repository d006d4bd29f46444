"""Exams of generated questions, and how many of them are answered exactly."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence

from .general import general_query
from .people import Question


def score(answers: Sequence[str], questions: Sequence[Question]) -> float:
    """Share of exact answers."""
    return sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(questions)


def general_exam(rng: random.Random, count: int, known: Iterable[Hashable] = ()) -> list[Question]:
    """``count`` general queries, none of which stands in ``known``."""
    taken = set(known)
    exam: list[Question] = []
    while len(exam) < count:
        query = general_query(rng)
        if query.text not in taken:
            taken.add(query.text)
            exam.append(query)
    return exam
