"""What consolidators learn from: texts, and queries about each with responses that the frozen model is scored on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ...data.samples import Sample
from ...embedded_model.fresh_lessons import fresh_lesson, fresh_random
from ...text.chat_format import ChatFormat
from ...text.queries import load_queries
from ...utils.random_state import sample_up_to
from ..gradmem.lessons import Lesson, make_lessons, split

# Synthetic texts that are measured on, numbers of texts for each seed, and kinds of exercises that say nothing of a
# memory, or are as long as the text.
HELD_OUT, NUMBERS, LEFT_OUT = 16, 100_000_000, ("ask", "repeat")
# General queries beside each text of a file.
GENERAL = 4


@dataclass(frozen=True)
class Text:
    """Token ids of a text, and samples without the teacher's states."""

    ids: tuple[int, ...]
    samples: tuple[Sample, ...]


class Lessons(Protocol):
    """Where texts come from.

    Attributes:
        identity: what tells these lessons from others, JSON-ready.
    """

    identity: Any

    def draw(self, number: int) -> Text:
        """The text number ``number`` to learn from, the same at each call."""
        ...

    def held_out(self) -> Sequence[Text]:
        """Texts that are never drawn."""
        ...


class SyntheticLessons:
    """Fresh texts of the package's own generators without end; see ``fresh_lesson``.

    Args:
        seed: each has texts of its own.
        queries: about a text at most.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int, queries: int):
        self.chat, self.queries = ChatFormat.of(tokenizer), queries
        self.first = seed * NUMBERS
        self.identity = ["synthetic", queries]

    def draw(self, number: int) -> Text:
        """See ``Lessons``."""
        return self._text(self.first + HELD_OUT + number)

    def held_out(self) -> list[Text]:
        """See ``Lessons``."""
        return [self._text(self.first + number) for number in range(HELD_OUT)]

    def _text(self, number: int) -> Text:
        rng = fresh_random(number)
        lesson = fresh_lesson(rng)
        exercises = [exercise for exercise in lesson.exercises if exercise.kind not in LEFT_OUT]
        samples = []
        for exercise in sample_up_to(rng, exercises, self.queries):
            *before, (question, answer) = exercise.turns
            turns = (*(part for turn in before for part in turn), question)
            stream = "general" if exercise.kind == "general" else "self_study"
            samples.append(_sample(self.chat, turns, answer, stream))
        return Text(tuple(self.chat.ids(lesson.text)), tuple(samples))


class FileLessons:
    """Texts of a JSONL file, rows ``{"context": ..., "question": ..., "answer": ...}``; one in ten is held out.

    General queries of the package go along; the first token of their response is what the model is scored on.

    Raises:
        InputError: the file has fewer than two texts, or a row that cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], name: str, seed: int, queries: int):
        chat = ChatFormat.of(tokenizer)
        self.queries = queries
        self.general = [_sample(chat, (query,), "", "general") for query in load_queries(None, tokenizer)]
        learned, kept = split(make_lessons(rows, chat, name), 0.1, seed)
        self.texts, self.kept = ([_about(lesson) for lesson in lessons] for lessons in (learned, kept))
        self.identity = [name, [[list(ids), len(samples)] for ids, samples in self.texts], queries]

    def draw(self, number: int) -> Text:
        """See ``Lessons``."""
        return self._text(self.texts[number % len(self.texts)], random.Random(number))

    def held_out(self) -> list[Text]:
        """See ``Lessons``."""
        return [self._text(text, random.Random(number)) for number, text in enumerate(self.kept)]

    def _text(self, text: tuple[tuple[int, ...], list[Sample]], rng: random.Random) -> Text:
        ids, samples = text
        return Text(ids, (*sample_up_to(rng, samples, self.queries), *sample_up_to(rng, self.general, GENERAL)))


def _sample(chat: ChatFormat, turns: tuple[str, ...], answer: str, stream: str) -> Sample:
    query = turns if len(turns) > 1 else turns[0]
    return Sample(tuple(chat.query_ids(query)), (*chat.ids(answer), chat.end), stream, query)


def _about(lesson: Lesson) -> tuple[tuple[int, ...], list[Sample]]:
    """The text, and samples about it."""
    return lesson.text_ids, [Sample(query, response, "self_study") for query, response in lesson.asked]
