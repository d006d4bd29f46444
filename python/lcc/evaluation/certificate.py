"""The fidelity certificate: what a memory keeps of its text and does to everything else, beside full text and nothing.

It is measured on the finished memory as ``lcc.ask`` reads it, on queries that compile never trained on.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from transformers import PreTrainedModel

from ..data.reconstruction import repetitions
from ..data.samples import DistillationData, Sample
from ..data.settings import DataSettings
from ..inference.reader import Reader, changed_share
from ..memory.memory import Memory
from ..modeling.lora import frozen
from ..synthetic.exam import general_exam
from ..text.chat_format import ChatFormat
from ..text.context import Context
from ..utils.progress import Report
from ..utils.random_state import sample_up_to
from .metrics import METRICS
from .questions import Question, held_out_questions

GENERAL_QUERIES = 64
# Questions that a memory answers worse than the full text and the certificate quotes, at most.
MISSED = 20
Readers = dict[str, Reader]
Figure = TypeVar("Figure")


def measure(
    model: PreTrainedModel,
    context: Context,
    memory: Memory,
    data: DistillationData | None,
    settings: DataSettings,
    seed: int,
    queries: Sequence[str],
    questions: Sequence[Question] | None = None,
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """Measure ``memory`` beside the full text and nothing; docs/memory-format.md says what each figure is.

    Args:
        model: the frozen model, no adapter in it; it is left as it came.
        context: the text. Of an update, the full text is read behind the old memory, and what is rehearsed is measured
            beside the old memory alone.
        data: what the memory was trained on, and what was held out of it. None: it was not trained on data.
        seed: draws the context-agnostic queries.
        queries: those that compile drew context-agnostic ones from: some of the others are asked, and generated ones
            where they are too few.
        questions: about the text; by default those of ``held_out_questions``.

    Returns:
        JSON-ready figures.
    """
    began = time.monotonic()
    with frozen(model):
        readers = {"full_text": Reader.of_context(model, context)} | memory_readers(model, context.chat, memory)
        trained, held_out = (data.train, data.held_out) if data else ((), ())
        rehearsed = [sample for sample in held_out if sample.stream == "rehearsal"]
        fresh = [sample for sample in held_out if sample.stream != "rehearsal"]
        general = fresh_queries(trained + held_out, queries, seed)
        pieces, longest = repetitions(context, settings), settings.max_response_tokens
        steps = Steps(report, 1 + (context.past is not None))
        measured = figures(readers, pieces, fresh, general, questions, longest, steps)
        if context.past is not None:
            readers |= {"full_text": Reader(model, context.chat, context.read_prefix(model))}
            beside = figures(readers, (), rehearsed, (), None, longest, steps)
            measured["rehearsed"] = {name: beside[name] for name in ("held_out", "questions")}
    return measured | {"dtype": memory.dtype, "seconds": round(time.monotonic() - began, 3)}


def figures(
    readers: Readers,
    pieces: Sequence[Sample],
    held_out: Sequence[Sample],
    general: Sequence[str],
    questions: Sequence[Question] | None,
    max_new_tokens: int,
    steps: Steps,
) -> dict[str, Any]:
    """What readers say of one text; None for what there is nothing to measure on.

    Args:
        pieces: the reconstruction.
        general: context-agnostic queries.
        questions: None: those of ``held_out_questions``.
    """
    asked = questions
    if asked is None:
        asked = held_out_questions(held_out, readers["full_text"], max_new_tokens)
    return {
        "reconstruction": _reconstruction(readers, pieces, steps),
        "held_out": _held_out(readers, held_out, steps),
        "general": _general(readers, general, max_new_tokens, steps),
        "questions": _questions(readers, asked, "self_asked" if questions is None else "given", steps),
    }


def memory_readers(model: PreTrainedModel, chat: ChatFormat, memory: Memory) -> Readers:
    """Those that a memory is measured by, the full text's apart."""
    return {"memory": Reader.of_memory(model, chat, memory), "no_text": Reader.of_text(model, chat, "")}


class Steps:
    """Tells how many passes are done: one of each reader for each of four figures.

    Args:
        texts: how many are measured.
    """

    def __init__(self, report: Report, texts: int = 1):
        self._report, self._done, self.passes = report, 0, 12 * texts

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
        self._report("certifying", self._done, self.passes)


def fresh_queries(samples: Sequence[Sample], queries: Sequence[str], seed: int) -> list[str]:
    """Context-agnostic queries that no sample has: from ``queries``, and generated ones if they are too few."""
    known = {sample.query for sample in samples}
    rng = random.Random(seed)
    left = [query for query in dict.fromkeys(queries) if query not in known]
    fresh = sample_up_to(rng, left, GENERAL_QUERIES)
    return fresh + [query.text for query in general_exam(rng, GENERAL_QUERIES - len(fresh), (*known, *fresh))]


def _reconstruction(readers: Readers, pieces: Sequence[Sample], steps: Steps) -> dict[str, Any] | None:
    """Share of the tokens predicted right after the request to repeat the text, or a piece of it, teacher-forced."""
    if not pieces:
        steps.skip(readers)
        return None
    queries, responses = [piece.query for piece in pieces], [piece.response_ids for piece in pieces]
    # The end is no token of the text.
    responses[-1] = responses[-1][:-1]
    accuracy = steps.each(readers, lambda reader: reader.accuracy(queries, responses))
    return {"tokens": sum(map(len, responses)), "accuracy": accuracy}


def _held_out(readers: Readers, held_out: Sequence[Sample], steps: Steps) -> dict[str, Any] | None:
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


def _general(readers: Readers, queries: Sequence[str], max_new_tokens: int, steps: Steps) -> dict[str, Any] | None:
    """How far readers are from one another on queries that have nothing to do with the text."""
    if not queries:
        steps.skip(readers)
        return None
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


def _questions(readers: Readers, questions: Sequence[Question], source: str, steps: Steps) -> dict[str, Any] | None:
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
