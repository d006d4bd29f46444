"""What each choice of LCC is worth: one setting changed at a time, the same unseen documents for all of them.

    python -m benchmarks.ablations --out benchmarks/results/fidelity/ablations.json --work DIR
        [--only general] [--values 0]
    python -m benchmarks.ablations --smoke --out smoke.json --work DIR

The paper's axes (LCC Table 3, Figures 2-5), on the default's three streams and on the paper's two. A document's
surrogate data are made once and every training takes its share of them. Trainings and answers are in DIR as soon as
they are done, and a second call goes on from there; rows that it was not asked for stay in the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path

import torch

from benchmarks.ablations.points import ABLATED, ABLATIONS, SHARED, SMOKE, Plan, Point
from benchmarks.ablations.report import KIND
from benchmarks.ablations.rows import Measured, bounds, make_row, measure
from benchmarks.ablations.training import prepare
from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from lcc.utils.progress import Reporter


def run(plan: Plan, asked: Sequence[Point], out: Path, spread: Callable[..., Iterable], reporter: Reporter) -> None:
    """Measure the points and write their rows as they come, as the ablations and their values are listed.

    Args:
        asked: their bases among them.
        spread: ``map``, or that of a pool of workers.
    """
    places = [point.place for point in plan.points(list(ABLATIONS))]
    sweep = Sweep(out, itemgetter("streams", "ablation", "value"), places.index, KIND)
    for done, _ in enumerate(spread(partial(prepare, plan), plan.texts), 1):
        reporter.count("documents", done, len(plan.texts))
    both, where = bounds(plan), describe()
    # Bases first: the others are compared with them.
    points = sorted(asked, key=lambda point: not point.base)
    trainings = list(dict.fromkeys(point.settings for point in points))
    bases: dict[str, Measured] = {}
    measurements = zip(trainings, spread(partial(measure, plan), trainings), strict=True)
    for done, (settings, measured) in enumerate(measurements, 1):
        trained = [point for point in points if point.settings == settings]
        if measured is None:
            print(f"diverged: {', '.join(f'{point.ablation} {point.value}' for point in trained)}")
        else:
            bases |= {point.streams: measured for point in trained if point.base}
        for point in trained:
            comparable = measured is not None and point.streams in bases
            row = [make_row(point, measured, bases[point.streams], both) | where] if comparable else []
            sweep.replace(point.place, row)
        reporter.count("trainings", done, len(trainings))


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
