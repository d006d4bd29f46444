"""What writes are learned from: texts, and what is asked behind a memory of each."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...errors import InputError
from ...text.chat_format import ChatFormat
from ...text.prompts import REPEAT_REQUEST
from ...utils.random_state import sample_up_to
from ...utils.values import is_text

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Lesson:
    """Token ids of a text, and of what is asked about it: each query, and its response with its end token."""

    text_ids: Ids
    asked: tuple[tuple[Ids, Ids], ...]

    def some(self, rng: random.Random, count: int) -> Lesson:
        """The same with so many of its queries at most."""
        return replace(self, asked=tuple(sample_up_to(rng, self.asked, count)))


@dataclass(frozen=True)
class Batch:
    """Lessons padded on the right.

    Attributes:
        texts, counted: (batch, n) int64, and which are no padding.
        reads, answers: (reads, r) int64, query and response, and which belong to the response.
        owners: (reads,) int64: the text that each read is about.
        tokens: of each memory.
    """

    texts: torch.Tensor
    counted: torch.Tensor
    reads: torch.Tensor
    answers: torch.Tensor
    owners: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, lessons: Sequence[Lesson], ratio: float, device: torch.device) -> Batch:
        """A batch with as many memory tokens as a compilation of its longest text has."""
        texts = [lesson.text_ids for lesson in lessons]
        asked = [pair for lesson in lessons for pair in lesson.asked]
        reads = [query + response for query, response in asked]
        responses = [(len(query), len(read)) for (query, _), read in zip(asked, reads, strict=True)]
        owners = [number for number, lesson in enumerate(lessons) for _ in lesson.asked]
        return cls(
            _padded(texts).to(device),
            _spans([(0, len(text)) for text in texts]).to(device),
            _padded(reads).to(device),
            _spans(responses).to(device),
            torch.tensor(owners, device=device),
            math.ceil(max(map(len, texts)) / ratio),
        )


def make_lessons(rows: Iterable[dict[str, Any]], chat: ChatFormat, name: str) -> list[Lesson]:
    """The lessons of rows in the schema of ``lcc eval``: ``context``, ``question`` and ``answer``; one for each text.

    A row without a question asks for its context to be repeated.

    Raises:
        InputError: there are none, or a row cannot be used; ``name`` says where from.
    """
    asked: dict[str, list[tuple[Ids, Ids]]] = {}
    for number, row in enumerate(rows, 1):
        context, question = row.get("context", ""), row.get("question", REPEAT_REQUEST)
        answer = row.get("answer", "") if "question" in row else context
        if not all(is_text(part) and part.strip() for part in (context, question, answer)):
            raise InputError(f"{name}, row {number} must have context, and question with answer or neither, as texts")
        response = (*chat.ids(answer), chat.end)
        asked.setdefault(context, []).append((tuple(chat.query_ids(question)), response))
    if not asked:
        raise InputError(f"{name} holds no rows")
    return [Lesson(tuple(chat.ids(context)), tuple(pairs)) for context, pairs in asked.items()]


def split(lessons: Sequence[Lesson], held_out: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn from, and lessons about other texts; both in the order of their texts' lengths.

    Raises:
        InputError: there are fewer than two texts.
    """
    if len(lessons) < 2:
        raise InputError("meta-training needs at least two texts: one is held out")
    drawn = random.Random(seed).sample(list(lessons), len(lessons))
    kept = min(len(lessons) - 1, max(1, round(held_out * len(lessons))))
    by_length = (sorted(part, key=lambda lesson: len(lesson.text_ids)) for part in (drawn[kept:], drawn[:kept]))
    train, measured = by_length
    return train, measured


def draw(rng: random.Random, lessons: Sequence[Lesson], count: int, asked: int) -> list[Lesson]:
    """``count`` lessons of like length, as far as there are so many, with ``asked`` queries each at most.

    Args:
        lessons: in the order of their texts' lengths.
    """
    near = 4 * count
    first = rng.randrange(max(1, len(lessons) - near + 1))
    return [lesson.some(rng, asked) for lesson in sample_up_to(rng, lessons[first : first + near], count)]


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _spans(spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(rows, longest) bool: from the first number of each span to before the second."""
    places = torch.arange(max(end for _, end in spans))
    return torch.stack([(places >= start) & (places < end) for start, end in spans])
