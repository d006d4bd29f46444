"""What a reader keeps of a story: right answers, agreement with the model that reads the text, and everything else.

A small model answers few questions rightly from the text itself. So two things are measured: whether an answer is an
accepted one, and how far the reader is from the full-text model over that model's own answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from lcc.evaluation import METRICS, Example
from lcc.evaluation.stories import ANSWER_TOKENS, LEVELS, UNANSWERABLE, Story, unrelated_instructions
from lcc.inference.reader import Reader, kl_between

Row = dict[str, Any]


@dataclass(frozen=True)
class Exam:
    """A story's questions and the unrelated instructions, with the full-text model's own answers to them."""

    story: Story
    full_text: Reader

    @cached_property
    def questions(self) -> list[Example]:
        """The story's, answerable or not."""
        return self.story.examples

    @cached_property
    def instructions(self) -> list[Example]:
        """Those that have nothing to do with it."""
        return unrelated_instructions()

    @cached_property
    def responses(self) -> dict[str, list[tuple[int, ...]]]:
        """The full-text model's greedy responses."""
        sets = {"questions": self.questions, "instructions": self.instructions}
        return {
            name: self.full_text.respond([example.question for example in examples], ANSWER_TOKENS)
            for name, examples in sets.items()
        }

    def measure(self, reader: Reader) -> Row:
        """Scores in [0, 1]; KL in nats a token.

        Returns:
            ``right`` by level and over all levels that the text answers, and ``f1`` of these; ``admitted``: the share
            of unanswerable questions where the answer says so; ``instructions``: right answers to them; ``kl`` and
            ``same``, the share of equal first choices, over the full text's answers to the questions, and ``…_kl`` and
            ``…_same`` over those to the instructions.
        """
        by_level = {level: self._scores(reader, level) for level in LEVELS}
        answerable = [level for level in LEVELS if level != UNANSWERABLE]
        row: Row = {f"right_{level}": fmean(by_level[level]["contains"]) for level in answerable}
        row["right"] = fmean(score for level in answerable for score in by_level[level]["contains"])
        row["f1"] = fmean(score for level in answerable for score in by_level[level]["f1"])
        row["admitted"] = fmean(by_level[UNANSWERABLE]["contains"])
        row["instructions"] = fmean(_scored(reader, self.instructions)["contains"])
        for prefix, name, examples in (
            ("", "questions", self.questions),
            ("instructions_", "instructions", self.instructions),
        ):
            queries, responses = [example.question for example in examples], self.responses[name]
            row[f"{prefix}kl"] = kl_between(self.full_text, reader, queries, responses)
            row[f"{prefix}same"] = same_choices(self.full_text, reader, queries, responses)
        return row

    def _scores(self, reader: Reader, level: str) -> dict[str, list[float]]:
        return _scored(reader, [example for example in self.questions if example.task.endswith(f" {level}")])


def same_choices(
    reference: Reader, reader: Reader, queries: Sequence[str], responses: Sequence[tuple[int, ...]]
) -> float:
    """Share of the responses' tokens where both readers find the same token the most probable."""
    pairs = zip(reference.choices(queries, responses), reader.choices(queries, responses), strict=True)
    return fmean(one == other for one, other in pairs)


def _scored(reader: Reader, examples: Sequence[Example]) -> dict[str, list[float]]:
    answers = reader.answer([example.request for example in examples])
    return {
        name: [METRICS[name](answer, example.answers) for answer, example in zip(answers, examples, strict=True)]
        for name in ("contains", "f1")
    }
