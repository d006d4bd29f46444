"""The fidelity certificate: what a memory keeps of its text and does to everything else, beside full text and nothing.

It is measured on the finished memory as ``lcc.ask`` reads it, on queries that compile never trained on.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.samples import DistillationData, Sample
from ..data.settings import DataSettings
from ..errors import InputError
from ..inference.reader import Reader, changed_share
from ..memory.memory import Memory
from ..modeling.kv import KV
from ..modeling.lora import frozen
from ..modeling.prefill import read_prefix
from ..synthetic.exam import general_exam
from ..text.chat_format import ChatFormat, Query, turns_of
from ..text.prompts import REPEAT_REQUEST
from ..utils.jsonl import load_rows
from ..utils.progress import Report
from ..utils.random_state import sample_up_to
from ..utils.utf8 import normal
from .examples import JUDGE, Example
from .methods import check_examples_fit
from .metrics import METRICS, check_metric

GENERAL_QUERIES = 64
# The full text settles a question if the tokens of its answer have this probability, by their geometric mean.
SETTLED = 0.9
# Questions that a memory answers worse than the full text and the certificate quotes, at most.
MISSED = 20
# Streams of questions that the model asked itself.
ASKED = ("self_study", "rehearsal")
Questions = str | Path | Iterable[str | Mapping[str, Any]]
Readers = dict[str, Reader]
Figure = TypeVar("Figure")


@dataclass(frozen=True)
class Question:
    """A question about the text.

    Attributes:
        referenced: whether its reference answers are given; if not, the answer from the full text is the reference.
    """

    example: Example
    referenced: bool


def read_questions(
    source: Questions, text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Question]:
    """The questions about ``text`` in a JSONL file, a datasets name, or rows in its schema, or strings.

    A row is one of ``lcc eval``'s, but ``context`` and ``answer`` may be missing: rows about another context are left
    out, and a question without an answer is scored against the answer from the full text.

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
    check_examples_fit(
        model, chat, len(chat.prefix_ids) + len(chat.ids(text)), [question.example for question in about]
    )
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
    asked = [sample for sample in held_out if sample.stream in ASKED]
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


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    memory: Memory,
    data: DistillationData | None,
    settings: DataSettings,
    seed: int,
    queries: Sequence[str],
    questions: Sequence[Question] | None = None,
    report: Report = lambda *_: None,
    past: KV | None = None,
) -> dict[str, Any]:
    """Measure ``memory`` beside the full text and nothing; docs/memory-format.md says what each figure is.

    Args:
        model: the frozen model, no adapter in it; it is left as it came.
        data: what the memory was trained on, and what was held out of it. None: it was not trained on data.
        seed: draws the context-agnostic queries.
        queries: those that compile drew context-agnostic ones from: some of the others are asked, and generated ones
            where they are too few.
        questions: about the text; by default those of ``held_out_questions``.
        past: of an update, the old memory's K and V, keys unrotated. The full text is then read behind them. What is
            rehearsed is measured beside them alone.

    Returns:
        JSON-ready figures.
    """
    began = time.monotonic()
    chat = ChatFormat.of(tokenizer, date=memory.date, parse_special_tokens=settings.parse_special_tokens)
    with frozen(model):
        readers = {
            "full_text": Reader.of_text(model, chat, text, past),
            "memory": Reader.of_memory(model, chat, memory),
            "no_text": Reader.of_text(model, chat, ""),
        }
        trained, held_out = (data.train, data.held_out) if data else ((), ())
        rehearsed = [sample for sample in held_out if sample.stream == "rehearsal"]
        fresh = [sample for sample in held_out if sample.stream != "rehearsal"]
        general = fresh_queries(trained + held_out, queries, seed)
        asked = questions
        if asked is None:
            asked = held_out_questions(fresh, readers["full_text"], settings.max_response_tokens)
        steps = _Steps(report, past is not None)
        measured = {
            "reconstruction": _reconstruction(readers, chat, text, steps),
            "held_out": _held_out(readers, fresh, steps),
            "general": _general(readers, general, settings.max_response_tokens, steps),
            "questions": _questions(readers, asked, "self_asked" if questions is None else "given", steps),
        }
        if past is not None:
            beside = readers | {"full_text": Reader(model, chat, read_prefix(model, chat.prefix_ids, past))}
            asked = held_out_questions(rehearsed, beside["full_text"], settings.max_response_tokens)
            measured["rehearsed"] = {
                "held_out": _held_out(beside, rehearsed, steps),
                "questions": _questions(beside, asked, "self_asked", steps),
            }
    return measured | {"dtype": memory.dtype, "seconds": round(time.monotonic() - began, 3)}


class _Steps:
    """Tells how many passes are done: one of each reader for each of four figures, of an update six."""

    def __init__(self, report: Report, updated: bool):
        self._report, self._done, self.passes = report, 0, 18 if updated else 12

    def each(self, readers: Readers, figure: Callable[[Reader], Figure]) -> dict[str, Figure]:
        """The figure of each reader."""
        figures = {}
        for name, reader in readers.items():
            figures[name] = figure(reader)
            self._done += 1
            self._report("certifying", self._done, self.passes)
        return figures

    def skip(self, readers: Readers) -> None:
        """A figure that is not measured."""
        self._done += len(readers)


def fresh_queries(samples: Sequence[Sample], queries: Sequence[str], seed: int) -> list[str]:
    """Context-agnostic queries that no sample has: from ``queries``, and generated ones if they are too few."""
    known = {sample.query for sample in samples}
    rng = random.Random(seed)
    left = [query for query in dict.fromkeys(queries) if query not in known]
    fresh = sample_up_to(rng, left, GENERAL_QUERIES)
    return fresh + [query.text for query in general_exam(rng, GENERAL_QUERIES - len(fresh), (*known, *fresh))]


def _reconstruction(readers: Readers, chat: ChatFormat, text: str, steps: _Steps) -> dict[str, Any]:
    """Share of the text's tokens predicted right after "please repeat the context", teacher-forced."""
    ids = tuple(chat.ids(text))
    return {"tokens": len(ids), "accuracy": steps.each(readers, lambda reader: reader.accuracy(REPEAT_REQUEST, ids))}


def _held_out(readers: Readers, held_out: Sequence[Sample], steps: _Steps) -> dict[str, Any] | None:
    """KL from the full text over the held-out responses, which are the full text's own."""
    if not held_out:
        steps.skip(readers)
        return None
    queries = [sample.query for sample in held_out]
    responses = [sample.response_ids for sample in held_out]
    said = readers["full_text"].said(queries, responses)
    kl = steps.each(readers, said.kl)
    return {
        "answers": len(queries),
        "tokens": sum(map(len, responses)),
        "kl": {name: kl[name] for name in ("memory", "no_text")},
    }


def _general(readers: Readers, queries: Sequence[str], max_new_tokens: int, steps: _Steps) -> dict[str, Any]:
    """How far readers are from one another on queries that have nothing to do with the text."""
    said = steps.each(readers, lambda reader: reader.say(queries, max_new_tokens))

    def drift(reference: str) -> dict[str, dict[str, float]]:
        return {
            name: {
                "kl": said[reference].kl(reader),
                "changed": changed_share(said[reference].responses, said[name].responses),
            }
            for name, reader in readers.items()
            if name != reference
        }

    return {"answers": len(queries), "from_full_text": drift("full_text"), "from_no_text": drift("no_text")}


def _questions(readers: Readers, questions: Sequence[Question], source: str, steps: _Steps) -> dict[str, Any] | None:
    """Mean scores, and the share of the full text's that the memory keeps."""
    if not questions:
        steps.skip(readers)
        return None
    asked = [question.example for question in questions]
    answers = steps.each(readers, lambda reader: reader.answer([example.request for example in asked]))
    scored = [
        question.example if question.referenced else replace(question.example, answers=(full,))
        for question, full in zip(questions, answers["full_text"], strict=True)
    ]
    scores = {
        name: [METRICS[e.metric](text, e.answers) for e, text in zip(scored, texts, strict=True)]
        for name, texts in answers.items()
    }
    score = {name: statistics.fmean(values) for name, values in scores.items()}
    worse = [index for index in range(len(asked)) if scores["memory"][index] < scores["full_text"][index]]
    return {
        "source": source,
        "count": len(questions),
        "referenced": sum(question.referenced for question in questions),
        "score": score,
        "kept": score["memory"] / score["full_text"] if score["full_text"] else None,
        "missed": [
            {"question": asked[index].question, **{name: answers[name][index] for name in ("full_text", "memory")}}
            for index in worse[:MISSED]
        ],
    }
