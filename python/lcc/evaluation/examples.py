"""``Example``: one question with its reference answers, and the JSONL schema that holds it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

from ..errors import InputError
from ..inference.requests import Request
from ..utils.hashing import json_digest
from ..utils.values import is_text
from .metrics import METRICS

JUDGE = "judge"


@dataclass(frozen=True)
class Example:
    """One question about a context.

    A row of JSONL in kvpress' schema is an example: ``context``, ``question``, ``answer_prefix``, ``answer`` (a string
    or a list of them) and ``max_new_tokens``; the other fields are optional columns.

    Attributes:
        answers: reference answers: alternatives, but for ``string_match``, which wants all of them.
        answer_prefix: what the response begins with; the model goes on from there.
        task: the line of the summary that this example counts for.
        metric: a key of ``METRICS``, or ``judge``: the figure that the summary calls the score.
        history: earlier (question, answer) turns of the conversation, oldest first.
        general: the question has nothing to do with the context, which only stands beside it.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    answer_prefix: str = ""
    max_new_tokens: int = 64
    task: str = "questions"
    metric: str = "f1"
    history: tuple[tuple[str, str], ...] = ()
    general: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            InputError: a field cannot be used.
        """
        texts = {
            "context": (self.context,),
            "question": (self.question,),
            "answer": self.answers,
            "answer_prefix": (self.answer_prefix,),
            "task": (self.task,),
            "history": tuple(text for turn in self.history for text in turn),
        }
        for name, values in texts.items():
            if not all(map(is_text, values)):
                raise InputError(f"{name} must be text")
        if not self.answers:
            raise InputError("the list of answers is empty")
        if not self.question.strip():
            raise InputError("the question is empty")
        if not isinstance(self.general, bool):
            raise InputError(f"general is {self.general!r}; it must be true or false")
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens!r}; it must be a whole number above 0")
        if self.metric not in (*METRICS, JUDGE):
            raise InputError(f"unknown metric {self.metric!r}; there are {', '.join((*METRICS, JUDGE))}")

    @property
    def key(self) -> str:
        """A digest of what the model is asked: equal for the same question in any run."""
        asked = (self.context, self.history, self.question, self.answer_prefix, self.max_new_tokens, self.general)
        return json_digest(asked)[:24]

    @property
    def request(self) -> Request:
        """What a model is asked: earlier turns and the question."""
        turns = (*chain.from_iterable(self.history), self.question)
        return Request(turns, self.answer_prefix, self.max_new_tokens)

    @classmethod
    def from_row(cls, row: dict[str, Any], where: str) -> Example:
        """Read a JSONL row; columns that the schema does not know are ignored.

        Raises:
            InputError: a column is missing or has the wrong type; ``where`` says whose.
        """
        missing = [name for name in ("context", "question", "answer") if row.get(name) is None]
        if missing:
            raise InputError(f"{where} has no {missing[0]}: give context, question and answer")
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in row.items() if name in known and value is not None}
        several = isinstance(row["answer"], (list, tuple))
        try:
            return cls(
                **{
                    "metric": "string_match" if several else cls.metric,
                    **given,
                    "answers": tuple(row["answer"]) if several else (row["answer"],),
                    "history": tuple((question, answer) for question, answer in given.get("history", ())),
                }
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except (TypeError, ValueError):
            raise InputError(f"{where}: history must be a list of [question, answer]") from None


def parse_examples(rows: Iterable[dict[str, Any]], name: str) -> list[Example]:
    """Examples of rows in the JSONL schema.

    Raises:
        InputError: there are none, or one is no example; ``name`` says where from.
    """
    examples = [Example.from_row(row, f"{name}, row {number}") for number, row in enumerate(rows, 1)]
    if not examples:
        raise InputError(f"{name} holds no examples")
    return examples


def beside(queries: Sequence[Example], contexts: Iterable[str]) -> list[Example]:
    """Every query beside every context, which it has nothing to do with: what a memory does to general skill."""
    return [
        replace(query, context=context, task=query.task if query.general else "general", general=True)
        for context in contexts
        for query in queries
    ]
