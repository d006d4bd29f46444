"""A row of the ablations: a point's trainings, its answers, and the base beside it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.ablations.points import Plan, Point
from benchmarks.ablations.training import Ablated
from benchmarks.common.models import load
from benchmarks.fidelity.rows import difference, row
from benchmarks.fidelity.study import digest
from lcc.errors import DivergedError
from lcc.evaluation import FullText, NoText, Result, evaluate
from lcc.evaluation.bootstrap import interval, means, resample
from lcc.inference.reader import Reader, prefill_chat
from lcc.pipeline.settings import CompileSettings, make_settings
from lcc.text.chat_format import ChatFormat
from lcc.text.prompts import REPEAT_REQUEST


@dataclass(frozen=True)
class Measured:
    """A training's answers, and the share of each document that it repeats, by whether the LoRA is on."""

    results: dict[bool, list[Result]]
    repeats: dict[bool, list[float]]


def measure(plan: Plan, settings: CompileSettings) -> Measured | None:
    """Train on every document and ask; None if a training diverges."""
    methods = [Ablated(plan, settings, lora_on) for lora_on in sorted({False, settings.compiler.coupled})]
    try:
        results = evaluate(methods, plan.examples, plan.folder / digest(settings.flat()), progress=False)
    except DivergedError:
        return None
    return Measured(
        {method.lora_on: [result for result in results if result.method == method.name] for method in methods},
        {method.lora_on: [method.repeats(text) for text in plan.texts] for method in methods},
    )


@dataclass(frozen=True)
class Bounds:
    """The answers with the full text and with none, and the share of the documents that each repeats."""

    results: list[Result]
    repeats: dict[str, float]


def bounds(plan: Plan) -> Bounds:
    """What every point is measured against."""
    model, tokenizer = load()
    methods = [FullText(model, tokenizer), NoText(model, tokenizer)]
    results = evaluate(methods, plan.examples, plan.folder / "bounds", progress=False)
    chat = ChatFormat.of(tokenizer)

    def repeats(text: str, seen: str) -> float:
        reader = Reader(model, chat, prefill_chat(model, chat, seen), after_text=bool(seen))
        return reader.accuracy([REPEAT_REQUEST], [tuple(chat.ids(text))])

    full = statistics.fmean(repeats(text, text) for text in plan.texts)
    none = statistics.fmean(repeats(text, "") for text in plan.texts)
    return Bounds(results, {"full_text": full, "no_text": none})


def make_row(point: Point, measured: Measured, base: Measured, both: Bounds) -> dict[str, Any]:
    """The row of a point: what ``benchmarks.fidelity`` says of a method, beside the base."""
    results = [replace(result, method="lcc") for result in measured.results[point.lora_on]]
    figures = row([*both.results, *results], "lcc", point.settings.ratio)
    sides = results, base.results[False]
    questions = difference(*([r for r in side if r.task in figures["headline"]] for side in sides))
    general = difference(*([r for r in side if r.general] for side in sides))
    repeats = measured.repeats[point.lora_on]
    documents = [str(number) for number in range(len(repeats))]
    defaults = make_settings().flat()
    changed = {name: value for name, value in point.settings.flat().items() if value != defaults[name]}
    return {
        "streams": point.streams,
        "ablation": point.ablation,
        "value": point.value,
        "base": point.base,
        **figures,
        "qa_difference": questions and questions.interval,
        "general_difference": general and general.interval,
        "repeats": statistics.fmean(repeats),
        "repeats_interval": interval(means(resample(documents), repeats)),
        "repeats_bounds": both.repeats,
        "settings": changed,
    }
