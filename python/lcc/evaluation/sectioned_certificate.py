"""The certificate of a text in sections: no reader has all of it, so each section is the full text of its questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..data.reconstruction import repetitions
from ..data.samples import SectionedData
from ..data.sections import joined
from ..data.settings import DataSettings
from ..inference.reader import Reader
from ..memory.memory import Memory
from ..modeling.lora import frozen
from ..text.context import Context
from ..utils.progress import Report
from .certificate import MISSED, Question, Steps, figures, fresh_queries, memory_readers

Row = dict[str, Any]


def measure_sections(
    model: PreTrainedModel,
    sections: Sequence[Context],
    memory: Memory,
    data: SectionedData,
    settings: DataSettings,
    seed: int,
    queries: Sequence[str],
    questions: Sequence[Question] | None = None,
    report: Report = lambda *_: None,
) -> Row:
    """``lcc.evaluation.certificate.measure`` of a memory of all sections.

    What was asked of one section, or of two, is measured beside the model that reads them; figures are means over all
    answers or tokens. A question that is given belongs to the section on which its answer hangs most.
    """
    began = time.monotonic()
    chat, longest = sections[0].chat, settings.max_response_tokens
    general = fresh_queries(data.samples, queries, seed)
    steps = Steps(report, len(sections) + len(data.across))
    with frozen(model):
        others = memory_readers(model, chat, memory)
        given = None if questions is None else _by_section(model, sections, questions, others["no_text"], longest)
        rows = []
        for number, (section, own) in enumerate(zip(sections, data.sections, strict=True)):
            readers = {"full_text": Reader.of_context(model, section)} | others
            share, asked = general[number :: len(sections)], given[number] if given else None
            rows.append(figures(readers, repetitions(section, settings), own.held_out, share, asked, longest, steps))
        for one in data.across:
            first, second = (sections[number] for number in one.pair)
            readers = {"full_text": Reader.of_context(model, joined(first, second))} | others
            rows.append(figures(readers, (), one.held_out, (), () if given else None, longest, steps))
    return _merged(rows) | {"dtype": memory.dtype, "seconds": round(time.monotonic() - began, 3)}


def _by_section(
    model: PreTrainedModel, sections: Sequence[Context], questions: Sequence[Question], no_text: Reader, longest: int
) -> list[list[Question]]:
    """The questions of each section: those whose answer from it is farthest from an answer without any text."""
    asked = [(*(turn for pair in one.example.history for turn in pair), one.example.question) for one in questions]
    told = []
    for section in sections:
        said = Reader.of_context(model, section).say(asked, longest)
        by_token = said.divergence(said.again(no_text))
        told.append([part.mean().item() for part in by_token.split([len(one) for one in said.responses])])
    belongs = [max(range(len(sections)), key=lambda number: told[number][index]) for index in range(len(questions))]
    return [[one for one, own in zip(questions, belongs, strict=True) if own == n] for n in range(len(sections))]


def _merged(rows: Sequence[Row]) -> Row:
    """One row of many: means, weighted by what each was measured on."""
    by = {"reconstruction": "tokens", "held_out": "tokens", "general": "answers", "questions": "count"}
    merged: Row = {}
    for name, weight in by.items():
        some = [row[name] for row in rows if row[name] is not None]
        merged[name] = _mean(some, weight) if some else None
    if questions := merged["questions"]:
        full = questions["score"]["full_text"]
        questions["kept"] = questions["score"]["memory"] / full if full else None
        questions["missed"] = questions["missed"][:MISSED]
    return merged


def _mean(rows: Sequence[Row], weight: str) -> Row:
    """Figures by their means; counts, and lists, together."""
    total = sum(row[weight] for row in rows)
    mean: Row = {}
    for name, value in rows[0].items():
        values = [row[name] for row in rows]
        if name == "kept":
            # A share of means, not a mean of shares.
            continue
        if isinstance(value, dict):
            mean[name] = _mean([one | {weight: row[weight]} for one, row in zip(values, rows, strict=True)], weight)
            mean[name].pop(weight)
        elif isinstance(value, float):
            mean[name] = sum(row[name] * row[weight] for row in rows) / total
        elif isinstance(value, int):
            mean[name] = sum(values)
        else:
            mean[name] = value if isinstance(value, str) else [item for some in values for item in some or ()]
    return mean
