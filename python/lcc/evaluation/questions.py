"""The questions of a certificate: given ones, and those that the model asked itself and that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.samples import SELF_ASKED, Sample
from ..errors import InputError
from ..inference.reader import Reader
from ..text.chat_format import ChatFormat, Query, turns_of
from ..utils.jsonl import load_rows
from ..utils.utf8 import normal
from .examples import JUDGE, Example
from .methods import check_examples_fit
from .metrics import check_metric

# The full text settles a question if the tokens of its answer have this probability, by their geometric mean.
SETTLED = 0.9
Questions = str | Path | Iterable[str | Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """A question about the text.

    Attributes:
        referenced: whether its reference answers are given; if not, the answer from the full text is the reference.
    """

    example: Example
    referenced: bool


def read_questions(
    source: Questions,
    text: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int | None = None,
) -> list[Question]:
    """The questions about ``text`` in a JSONL file, a datasets name, or rows in its schema, or strings.

    A row is one of ``lcc eval``'s, but ``context`` and ``answer`` may be missing: rows about another context are left
    out, and a question without an answer is scored against the answer from the full text.

    Args:
        tokens: of the text that stand before a question; by default all.

    Raises:
        InputError: the source cannot be read, a row cannot be used, none is about ``text``, or one does not fit into
            the model's window behind it.
    """
    if isinstance(source, (str, Path)):
        rows: list[Any] = load_rows(str(source), "test")
    else:
        rows = [{"question": row} if isinstance(row, str) else row for row in source]
    about = []
    for number, row in enumerate(rows, 1):
        where = f"question {number}"
        if not isinstance(row, Mapping):
            raise InputError(f"{where} is {row!r}: give text, or a row with question and answer")
        if normal(str(row.get("context") or text)).strip() == normal(text).strip():
            about.append(_question(row, text, where))
    if not about:
        raise InputError(
            f"none of the {len(rows)} questions is about this text: leave their context out, or make it the text"
        )
    chat = ChatFormat.of(tokenizer)
    before = len(chat.prefix_ids) + (len(chat.ids(text)) if tokens is None else tokens)
    check_examples_fit(model, chat, before, [question.example for question in about])
    return about


def _question(row: Mapping[str, Any], text: str, where: str) -> Question:
    referenced = row.get("answer") is not None
    assumed = {} if referenced else {"answer": ""}
    example = Example.from_row({**row, "context": text, **assumed}, where)
    if example.metric == JUDGE:
        raise InputError(f"{where}: compile asks no judge; give another metric, or measure it with lcc eval")
    check_metric(example.metric)
    return Question(example, referenced)


def held_out_questions(held_out: Sequence[Sample], full_text: Reader, max_new_tokens: int) -> list[Question]:
    """Self-asked questions that were held out of training and that the full text settles.

    Many self-asked questions have no answer in the text. Such questions get arbitrary answers even from the full text,
    so they are left out.
    """
    asked = [sample for sample in held_out if sample.stream in (*SELF_ASKED, "rehearsal")]
    if not asked:
        return []
    sure = full_text.confidence([sample.query for sample in asked], [sample.response_ids for sample in asked])
    return [
        Question(_example(sample.query, max_new_tokens), False)
        for sample, probability in zip(asked, sure, strict=True)
        if probability >= SETTLED
    ]


def _example(query: Query, max_new_tokens: int) -> Example:
    *before, question = turns_of(query)
    history = tuple(zip(before[::2], before[1::2], strict=True))
    return Example("", question, ("",), max_new_tokens=max_new_tokens, history=history)
