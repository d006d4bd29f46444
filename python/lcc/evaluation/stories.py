"""The suite ``stories``: prose of many kinds, written for this package, with questions on the paper's three levels.

Twelve texts of 550 to 850 words: narratives, a contract, minutes, a manual, a dialogue, a report, letters, a guide, a
log, an interview. Of each there are five questions a level (LCC appendix C.2): easy (one sentence answers), medium (two
must be joined) and hard (the whole text counts), and three that sound like them and that the text does not answer.
Beside them are twenty instructions that have nothing to do with any text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ..utils.jsonl import parse_jsonl
from .examples import Example

# The texts, in the order of the tables: all but the last six may be used to choose settings.
SEARCHED = ("lighthouse", "orchard_lease", "two_sisters", "clockmaker", "reservoir_report", "island_guide")
HELD_OUT = ("night_train", "council_minutes", "kiln_manual", "beekeeper_letters", "expedition_log", "press_interview")
NAMES = SEARCHED + HELD_OUT
LEVELS = EASY, MEDIUM, HARD, UNANSWERABLE = "easy", "medium", "hard", "unanswerable"
ANSWER_TOKENS = 64
# What an answer says that admits that the text does not tell.
ADMITTING = (
    "not mentioned", "not specified", "not stated", "not given", "not provided", "not mention", "not specify",
    "not say", "not state", "not tell", "not known", "not clear", "unclear", "unknown", "not explicitly",
    "no information", "not described", "not named", "not explained",
)  # fmt: skip


@dataclass(frozen=True)
class Story:
    """A text of the suite.

    Attributes:
        kind: of text, such as ``contract``.
        questions: with ``question``, ``level`` (one of ``LEVELS``) and ``answers``; none if the text does not tell.
    """

    name: str
    kind: str
    text: str
    questions: tuple[dict[str, Any], ...]

    @property
    def examples(self) -> list[Example]:
        """The questions, each scored by whether an accepted answer is contained in what is answered."""
        return [
            Example(
                self.text,
                question["question"],
                tuple(question["answers"]) or ADMITTING,
                max_new_tokens=ANSWER_TOKENS,
                task=f"stories {question['level']}",
                metric="contains",
            )
            for question in self.questions
        ]


@cache
def load_story(name: str) -> Story:
    """One of ``NAMES``."""
    row = json.loads(_read(f"{name}.json"))
    return Story(row["name"], row["kind"], row["text"], tuple(row["questions"]))


def stories() -> list[Example]:
    """The questions of all texts."""
    return [example for name in NAMES for example in load_story(name).examples]


def unrelated_instructions() -> list[Example]:
    """Instructions that have nothing to do with any text, with accepted answers."""
    return [
        Example(
            "", row["question"], tuple(row["answers"]), max_new_tokens=ANSWER_TOKENS, task="general", metric="contains"
        )
        for row in parse_jsonl(_read("general.jsonl"), "general.jsonl")
    ]


def _read(name: str) -> str:
    return (resources.files(__package__) / "stories" / name).read_text("utf-8")
