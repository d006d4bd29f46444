"""Training batches for the embedded model: one text a row, followed by isolated exercises about it.

A row is ``[prefix | text | exercise 1 | exercise 2 | ...]``. Each exercise sees the prefix, the text and itself, and
sits at the positions right after the text, as if it were alone there: one encode of the text serves all exercises.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ..chat import SEPARATOR, SYSTEM_PROMPT
from ..self_study import ASK_REQUEST
from ..surrogate import REPEAT_REQUEST
from . import fiction, general

CONTINUE_REQUEST = "Continue the text after: {snippet}"
IGNORED = -100


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


KINDS = ("question", "unknown", "general", "repeat", "continue", "ask")
COPYING_WEIGHT = 0.15


def _snippet(words: list[str], rng: random.Random) -> Exercise:
    """Continue the text after four of its words, for up to twelve more."""
    start = rng.randrange(max(1, len(words) - 8))
    given, rest = words[start : start + 4], words[start + 4 : start + 16]
    return Exercise(((CONTINUE_REQUEST.format(snippet=" ".join(given)), " ".join(rest)),), "continue", COPYING_WEIGHT)


def copying_lesson(rng: random.Random, length: int, words: int | None = None) -> Lesson:
    """Repeat or continue a text of random words: what copying circuits grow on.

    The fewer distinct ``words`` (all, by default), the further back one must look to know where one is.
    """
    chosen = rng.choices(rng.sample(general.WORDS, words) if words else general.WORDS, k=length)
    text = " ".join(chosen)
    return Lesson(text, (Exercise(((REPEAT_REQUEST, text),), "repeat"), *(_snippet(chosen, rng) for _ in range(4))))


def document_lesson(rng: random.Random, people: int, attributes: int, alike: bool, repeat: bool = False) -> Lesson:
    """Questions of one to three turns, general queries, asking, continuing and (``repeat``) repeating."""
    doc = fiction.document(rng, people, attributes, alike)
    exercises = []
    for _ in range(12):
        turns = rng.choices((1, 2, 3), (6, 1, 1))[0]
        asked = [doc.question(rng.choice(doc.facts), rng) for _ in range(turns)]
        exercises.append(Exercise(tuple((q.text, q.answer) for q in asked), "question"))
    unknown = fiction.unanswerable(rng, doc)
    exercises.append(Exercise(((unknown.text, unknown.answer),), "unknown"))
    for _ in range(4):
        query = general.general_query(rng)
        exercises.append(Exercise(((query.text, query.answer),), "general"))
    for _ in range(3):
        exercises.append(Exercise(((ASK_REQUEST, doc.question(rng.choice(doc.facts), rng).text),), "ask", 0.3))
    exercises.append(_snippet(doc.text.split(), rng))
    if repeat:
        exercises.append(Exercise(((REPEAT_REQUEST, doc.text),), "repeat", COPYING_WEIGHT))
    return Lesson(doc.text, tuple(exercises))


def repeating_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Repeat a document, and continue it from several places."""
    text = fiction.document(rng, people, attributes).text
    snippets = [_snippet(text.split(), rng) for _ in range(6)]
    return Lesson(text, (Exercise(((REPEAT_REQUEST, text),), "repeat"), *snippets))


def asking_lesson(rng: random.Random, people: int, attributes: int) -> Lesson:
    """Ask many questions about one document, and answer general queries beside it."""
    doc = fiction.document(rng, people, attributes)
    asked = [doc.question(fact, rng).text for fact in rng.choices(doc.facts, k=24)]
    queries = [general.general_query(rng) for _ in range(16)]
    asking = [Exercise(((ASK_REQUEST, question),), "ask") for question in asked]
    return Lesson(doc.text, (*asking, *(Exercise(((q.text, q.answer),), "general") for q in queries)))


def closed_book_lesson(rng: random.Random) -> Lesson:
    """No text: general queries are answered, questions about people are not."""
    exercises = []
    for _ in range(8):
        query = general.general_query(rng)
        exercises.append(Exercise(((query.text, query.answer),), "general"))
        unknown = fiction.unanswerable(rng, None)
        exercises.append(Exercise(((unknown.text, unknown.answer),), "unknown"))
    return Lesson("", tuple(exercises))


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
