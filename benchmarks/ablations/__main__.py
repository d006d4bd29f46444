"""What each choice of LCC is worth: one setting changed at a time, the same unseen documents for all of them.

    python -m benchmarks.ablations --out benchmarks/results/ablations.json --work DIR [--only general] [--values 0]
    python -m benchmarks.ablations --smoke --out smoke.json --work DIR

The paper's axes (LCC Table 3, Figures 2-5), on the default's three streams and on the paper's two. A document's
surrogate data are made once and every training takes its share of them. Trainings and answers are in DIR as soon as
they are done, and a second call goes on from there; rows that it was not asked for stay in the results.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation_points import ABLATED, ABLATIONS, SHARED, SMOKE, Plan, Point
from benchmarks.ablation_training import Ablated, prepare
from benchmarks.environment import describe
from benchmarks.fidelity_rows import difference, row
from benchmarks.fidelity_study import digest, load
from benchmarks.results_file import load_rows, write_rows
from lcc.errors import DivergedError
from lcc.evaluation import FullText, NoText, Result, evaluate
from lcc.evaluation.bootstrap import interval, means, resample
from lcc.inference.reader import Reader, prefill_chat
from lcc.pipeline.settings import CompileSettings, make_settings
from lcc.text.chat_format import ChatFormat
from lcc.text.prompts import REPEAT_REQUEST
from lcc.utils.progress import Reporter


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
        return reader.accuracy(REPEAT_REQUEST, tuple(chat.ids(text)))

    full = statistics.fmean(repeats(text, text) for text in plan.texts)
    none = statistics.fmean(repeats(text, "") for text in plan.texts)
    return Bounds(results, {"full_text": full, "no_text": none})


def make_row(point: Point, found: Measured, base: Measured, both: Bounds) -> dict[str, Any]:
    """The row of a point: what ``benchmarks.fidelity`` says of a method, beside the base."""
    mine = [replace(result, method="lcc") for result in found.results[point.lora_on]]
    told = row([*both.results, *mine], "lcc", point.settings.ratio)
    questions = difference(*([r for r in side if r.task in told["headline"]] for side in (mine, base.results[False])))
    general = difference(*([r for r in side if r.general] for side in (mine, base.results[False])))
    repeats = found.repeats[point.lora_on]
    documents = [str(number) for number in range(len(repeats))]
    defaults = make_settings().flat()
    changed = {name: value for name, value in point.settings.flat().items() if value != defaults[name]}
    return {
        "streams": point.streams,
        "ablation": point.ablation,
        "value": point.value,
        "base": point.base,
        **told,
        "qa_difference": questions and questions.interval,
        "general_difference": general and general.interval,
        "repeats": statistics.fmean(repeats),
        "repeats_interval": interval(means(resample(documents), repeats)),
        "repeats_bounds": both.repeats,
        "settings": changed,
    }


def run(plan: Plan, asked: Sequence[Point], out: Path, spread: Callable[..., Iterable], reporter: Reporter) -> None:
    """Measure the points and write their rows as they come.

    Args:
        asked: their bases among them.
        spread: ``map``, or that of a pool of workers.
    """
    rows = {place(**found): found for found in load_rows(out)}
    for done, _ in enumerate(spread(partial(prepare, plan), plan.texts), 1):
        reporter.count("documents", done, len(plan.texts))
    both, where = bounds(plan), describe()
    # Bases first: the others are compared with them.
    points = sorted(asked, key=lambda point: not point.base)
    trainings = list(dict.fromkeys(point.settings for point in points))
    bases: dict[str, Measured] = {}
    for done, (settings, found) in enumerate(zip(trainings, spread(partial(measure, plan), trainings), strict=True), 1):
        mine = [point for point in points if point.settings == settings]
        for point in mine:
            rows.pop(place(**vars(point)), None)
        if found is None:
            print(f"diverged: {', '.join(f'{point.ablation} {point.value}' for point in mine)}")
            continue
        bases |= {point.streams: found for point in mine if point.base}
        for point in mine:
            if point.streams in bases:
                rows[place(**vars(point))] = make_row(point, found, bases[point.streams], both) | where
        write_rows(out, in_order(plan, rows.values()))
        reporter.count("trainings", done, len(trainings))


def in_order(plan: Plan, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as the ablations and their values are listed."""
    places = [place(**vars(point)) for point in plan.points(list(ABLATIONS))]
    return sorted(rows, key=lambda found: places.index(place(**found)))


def place(streams: str, ablation: str, value: int | str, **_: Any) -> tuple[str, str, int | str]:
    """What tells a row from all others."""
    return streams, ablation, value


def make_plan(arguments: argparse.Namespace) -> Plan:
    """The run that the options describe."""
    if arguments.smoke:
        return Plan(arguments.work, documents=1, words=120, general=4, most_queries=40, shared=SMOKE)
    return Plan(arguments.work, arguments.documents, arguments.words, shared=SHARED | {"steps": arguments.steps})


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--streams", nargs="+", choices=ABLATED, default=list(ABLATED))
    parser.add_argument("--values", nargs="+", help="only these values and the bases")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--words", type=int, default=300, help="of a document")
    parser.add_argument("--steps", type=int, default=SHARED["steps"])
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--smoke", action="store_true", help="one short document and a few steps")
    parser.add_argument("--work", type=Path, required=True, help="where trainings and answers are kept")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(given)
    plan = make_plan(arguments)
    wanted = arguments.values
    points = [
        point
        for point in plan.points(arguments.only)
        if point.streams in arguments.streams and (point.base or wanted is None or str(point.value) in wanted)
    ]
    with Reporter() as reporter:
        if arguments.workers == 1:
            run(plan, points, arguments.out, map, reporter)
            return
        single = partial(torch.set_num_threads, 1)
        with ProcessPoolExecutor(arguments.workers, get_context("spawn"), single) as pool:
            run(plan, points, arguments.out, pool.map, reporter)


if __name__ == "__main__":
    main()
