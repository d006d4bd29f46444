"""The paper's benchmarks: rows of public datasets as examples (LCC section 4.1).

The paper prints its chat template, which ``ChatFormat`` reads off the tokenizer, but no questions for summaries and
no answer formats: the requests below are ours. Each loader is a function from a row to its examples.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..utils.jsonl import load_rows
from .examples import JUDGE, Example

Row = dict[str, Any]
UNANSWERABLE = "unanswerable"
SHORT_ANSWER = "Answer with the shortest words of the text that are enough."
IF_UNTOLD = f"If the text does not tell, answer: {UNANSWERABLE}"
SUMMARIZE = "Summarize the text in one paragraph."
SUMMARIZE_SHORT = "Summarize the text in one sentence."
CHOOSE = "Answer with the letter of the right choice alone."


def squad(row: Row) -> list[Example]:
    """SQuAD 2.0: ``context``, ``question``, ``answers`` {``text``: [...]}; no text means that there is no answer."""
    answers = tuple(dict.fromkeys(row["answers"]["text"])) or (UNANSWERABLE,)
    question = f"{row['question'].strip()} {SHORT_ANSWER} {IF_UNTOLD}"
    return [Example(row["context"], question, answers, max_new_tokens=32, task="squad", metric="f1")]


def coqa(row: Row) -> list[Example]:
    """CoQA: ``story``, ``questions`` and ``answers`` {``input_text``: [...]}; earlier turns carry the true answers."""
    turns = tuple(zip(row["questions"], row["answers"]["input_text"], strict=True))
    return [
        Example(row["story"], question, (answer,), "", 32, "coqa", "f1", turns[:number])
        for number, (question, answer) in enumerate(turns)
    ]


def booksum(row: Row) -> list[Example]:
    """BookSum's chapters: ``chapter`` and ``summary_text``."""
    return [Example(row["chapter"], SUMMARIZE, (row["summary_text"],), "", 512, "booksum", "rouge_l")]


def xsum(row: Row) -> list[Example]:
    """XSum: ``document`` and ``summary``."""
    return [Example(row["document"], SUMMARIZE_SHORT, (row["summary"],), "", 64, "xsum", "rouge_l")]


def gpqa(row: Row) -> list[Example]:
    """GPQA: ``Question``, ``Correct Answer`` and ``Incorrect Answer 1`` to ``3``, shuffled by the question's own seed.

    It asks about no text: a general query.
    """
    right = row["Correct Answer"].strip()
    choices = [right, *(row[f"Incorrect Answer {number}"].strip() for number in (1, 2, 3))]
    random.Random(row["Question"]).shuffle(choices)
    listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True))
    question = f"{row['Question'].strip()}\n\n{listed}\n\n{CHOOSE}"
    return [Example("", question, ("ABCD"[choices.index(right)],), "", 8, "gpqa", "exact_match", general=True)]


def alpaca(row: Row) -> list[Example]:
    """Alpaca and AlpacaEval: ``instruction``, ``output`` and perhaps ``input``; graded by a judge. A general query."""
    request = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return [Example("", request, (row["output"],), "", 256, "alpaca", JUDGE, general=True)]


@dataclass(frozen=True)
class Loader:
    """Where a dataset lies on the hub, the split and configuration to take, and how its rows are read."""

    hub: str
    split: str
    examples: Callable[[Row], list[Example]]
    config: str | None = None


LOADERS = {
    "squad": Loader("rajpurkar/squad_v2", "validation", squad),
    "coqa": Loader("stanfordnlp/coqa", "validation", coqa),
    "booksum": Loader("kmfoda/booksum", "test", booksum),
    "xsum": Loader("EdinburghNLP/xsum", "test", xsum),
    "gpqa": Loader("Idavidrein/gpqa", "train", gpqa, "gpqa_diamond"),
    "alpaca": Loader("tatsu-lab/alpaca", "train", alpaca),
}


def load_benchmark(name: str, place: str = "") -> list[Example]:
    """The examples of one of ``LOADERS``, from the hub or from ``place``: a JSONL file, a dataset folder, a hub name.

    Raises:
        InputError: the rows cannot be read, or are not the dataset's.
    """
    loader = LOADERS[name]
    rows = load_rows(place, loader.split) if place else load_rows(loader.hub, loader.split, loader.config)
    examples = []
    for number, row in enumerate(rows, 1):
        try:
            examples += loader.examples(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            where = place or loader.hub
            raise InputError(f"row {number} of {where} is not one of {name}'s: {error!r}") from None
    return examples
