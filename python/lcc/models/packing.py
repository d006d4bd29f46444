"""Lessons as tensors: one text a row, followed by isolated exercises about it.

A row is ``[prefix | text | exercise 1 | exercise 2 | ...]``. Each exercise sees the prefix, the text and itself, and
sits at the positions right after the text, as if it were alone there: one encode of the text serves all exercises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ..chat import SEPARATOR, SYSTEM_PROMPT

IGNORED = -100
KINDS = (
    "question", "unknown", "general", "repeat", "continue", "ask", "join", "compare", "count", "dialogue", "lookup"
)  # fmt: skip


@dataclass(frozen=True)
class Exercise:
    """Turns of (user text, assistant text), and the weight of their supervised tokens in the loss."""

    turns: tuple[tuple[str, str], ...]
    kind: str
    weight: float = 1.0


@dataclass(frozen=True)
class Lesson:
    """A text (possibly empty) and the exercises about it."""

    text: str
    exercises: tuple[Exercise, ...]


@dataclass(frozen=True)
class Batch:
    """Packed rows. All tensors are (rows, length) but ``visible``, (rows, 1, length, length) bool."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    kinds: torch.Tensor


class Packer:
    """Tokenises lessons and packs them into a ``Batch``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.prefix = self._ids(f"<|bos|><|system|>{SYSTEM_PROMPT}<|end|><|user|>")

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _exercise(self, exercise: Exercise, first_separator: str) -> tuple[list[int], list[int]]:
        """Token ids and labels (``labels[i]`` is the token that follows ``ids[i]``, where it is supervised)."""
        ids: list[int] = []
        labels: list[int] = []
        for index, (user, assistant) in enumerate(exercise.turns):
            opening = first_separator if index == 0 else "<|user|>"
            given = self._ids(f"{opening}{user}<|end|><|assistant|>")
            response = self._ids(f"{assistant}<|end|>")
            ids += given + response
            labels += [IGNORED] * (len(given) - 1) + response + [IGNORED]
        return ids, labels

    def pack(self, lessons: list[Lesson]) -> Batch:
        """One row a lesson, padded on the right."""
        rows = [self._row(lesson) for lesson in lessons]
        length = max(len(row[0]) for row in rows)
        padding = (0, 0, -1, IGNORED, 0.0, -1)
        columns = [
            torch.tensor([row[i] + [padding[i]] * (length - len(row[i])) for row in rows]) for i in range(len(padding))
        ]
        input_ids, position_ids, owner, labels, weights, kinds = columns
        query, key = owner[:, :, None], owner[:, None, :]
        visible = torch.ones(length, length, dtype=torch.bool).tril() & ((key == 0) | (key == query))
        return Batch(input_ids, position_ids, visible[:, None], labels, weights, kinds)

    def _row(self, lesson: Lesson) -> tuple[list, ...]:
        ids = self.prefix + self._ids(lesson.text)
        start = len(ids)
        positions, owner = list(range(start)), [0] * start
        labels, weights, kinds = [IGNORED] * start, [0.0] * start, [-1] * start
        for number, exercise in enumerate(lesson.exercises, 1):
            more, more_labels = self._exercise(exercise, SEPARATOR if lesson.text else "")
            ids = ids + more
            labels += more_labels
            positions += range(start, start + len(more))
            owner += [number] * len(more)
            weights += [exercise.weight] * len(more)
            kinds += [KINDS.index(exercise.kind)] * len(more)
        return ids, positions, owner, labels, weights, kinds
