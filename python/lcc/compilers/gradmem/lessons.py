"""What writes are learned from: texts, and what is asked behind a memory of each."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import InputError
from ...text.chat_format import ChatFormat
from ...text.prompts import REPEAT_REQUEST
from ...utils.values import is_text


@dataclass(frozen=True)
class Lesson:
    """Token ids of a text, of a query about it, and of the response with its end token."""

    text_ids: tuple[int, ...]
    query_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Lessons padded on the right.

    Attributes:
        texts, counted: (batch, n) int64, and which are no padding.
        reads, answers: (batch, r) int64, query and response, and which belong to the response.
        tokens: of each memory.
    """

    texts: torch.Tensor
    counted: torch.Tensor
    reads: torch.Tensor
    answers: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, lessons: Sequence[Lesson], ratio: float, most: int, device: torch.device) -> Batch:
        """A batch with as many memory tokens as a compilation of its longest text has, and ``most`` at most."""
        texts = [lesson.text_ids for lesson in lessons]
        reads = [lesson.query_ids + lesson.response_ids for lesson in lessons]
        responses = [(len(lesson.query_ids), len(read)) for lesson, read in zip(lessons, reads, strict=True)]
        tokens = min(most, math.ceil(max(map(len, texts)) / ratio))
        counted = _spans([(0, len(text)) for text in texts]).to(device)
        return cls(_padded(texts).to(device), counted, _padded(reads).to(device), _spans(responses).to(device), tokens)


def make_lessons(rows: Iterable[dict[str, Any]], chat: ChatFormat, name: str) -> list[Lesson]:
    """The lessons of rows in the schema of ``lcc eval``: ``context``, ``question`` and ``answer``.

    A row without a question asks for its context to be repeated.

    Raises:
        InputError: there are none, or a row cannot be used; ``name`` says where from.
    """
    lessons = []
    for number, row in enumerate(rows, 1):
        context, question = row.get("context", ""), row.get("question", REPEAT_REQUEST)
        answer = row.get("answer", "") if "question" in row else context
        if not all(is_text(part) and part.strip() for part in (context, question, answer)):
            raise InputError(f"{name}, row {number} must have context, and question with answer or neither, as texts")
        response = (*chat.ids(answer), chat.end)
        lessons.append(Lesson(tuple(chat.ids(context)), tuple(chat.query_ids(question)), response))
    if not lessons:
        raise InputError(f"{name} holds no rows")
    return lessons


def split(lessons: Sequence[Lesson], held_out: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to learn from, and lessons about other texts.

    Raises:
        InputError: there are fewer than two texts.
    """
    texts = sorted({lesson.text_ids for lesson in lessons})
    if len(texts) < 2:
        raise InputError("meta-training needs at least two texts: one is held out")
    random.Random(seed).shuffle(texts)
    kept = set(texts[: min(len(texts) - 1, max(1, round(held_out * len(texts))))])
    train = [lesson for lesson in lessons if lesson.text_ids not in kept]
    return train, [lesson for lesson in lessons if lesson.text_ids in kept]


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _spans(spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(rows, longest) bool: from the first number of each span to before the second."""
    places = torch.arange(max(end for _, end in spans))
    return torch.stack([(places >= start) & (places < end) for start, end in spans])
