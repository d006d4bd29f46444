"""Lessons as one packed row: each text followed by isolated exercises about it.

The row is ``[prefix | text | exercise 1 | exercise 2 | ...]`` of the first lesson, then the second's, and so on. Each
exercise sees the prefix, its text and itself, and sits at the positions right after the text, as if it were alone
there: one encode of the text serves all exercises. That is the layout of a compiled document without a context: the
prefix and the text are the buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

import lcc_kernels as lk

from ..text.prompts import SEPARATOR, SYSTEM_PROMPT

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
    """A packed row. All tensors are (rows,); ``layout`` says who sees whom, and where each row sits."""

    layout: lk.BottleneckLayout
    input_ids: torch.Tensor
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
        """All lessons in one row, isolated from one another."""
        layouts, *columns = zip(*map(self._lesson, lessons), strict=True)
        tensors = (torch.tensor([value for part in column for value in part]) for column in columns)
        return Batch(lk.BottleneckLayout.pack(layouts), *tensors)

    def _lesson(self, lesson: Lesson) -> tuple[lk.BottleneckLayout, list[int], list[int], list[float], list[int]]:
        """Layout, token ids, labels, weights and kinds."""
        ids = self.prefix + self._ids(lesson.text)
        read, lengths = len(ids), []
        labels, weights, kinds = [IGNORED] * read, [0.0] * read, [-1] * read
        for exercise in lesson.exercises:
            more, more_labels = self._exercise(exercise, SEPARATOR if lesson.text else "")
            ids = ids + more
            labels += more_labels
            weights += [exercise.weight] * len(more)
            kinds += [KINDS.index(exercise.kind)] * len(more)
            lengths.append(len(more))
        return lk.BottleneckLayout(0, 0, read, lengths), ids, labels, weights, kinds
