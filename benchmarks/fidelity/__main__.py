"""What LCC and its peers keep of unseen documents, at the same bytes, in one run.

    python -m benchmarks.fidelity --out benchmarks/results/fidelity/fidelity.json --work DIR --workers 2
    python -m benchmarks.fidelity --smoke --out smoke.json --work DIR

Every answer is in DIR as soon as it is there, and the table so far is written when another document is done. A second
call goes on from there, in another environment if need be: kvpress' methods want one of their own. Options that
``benchmarks.fidelity.search`` has chosen are read from ``--options``; a method without any takes its defaults.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common.results_file import load_details, write_rows
from benchmarks.fidelity.methods import PEERS, Options
from benchmarks.fidelity.options import CHOSEN, SEARCH_SEED, TEST_SEED, load_chosen, make_study, parser, pick
from benchmarks.fidelity.report import KIND
from benchmarks.fidelity.rows import difference, row
from benchmarks.fidelity.study import BOUNDS, Study, Unit, answers, made
from lcc.errors import InputError
from lcc.evaluation import Result

OURS = "lcc"
Item = TypeVar("Item")
# None: the method diverged.
Answers = dict[Unit, list[Result] | None]


def plan(
    documents: int, methods: Iterable[str], ratios: Sequence[float], chosen: dict[str, Options], block: int
) -> list[Unit]:
    """The bounds of all documents, then document by document, of ``block`` at a time, every method at every ratio.

    A block's documents are asked in turn, so that its processes do not make one document's surrogate data twice.
    """
    columns = [
        (name, ratio, chosen.get(name, PEERS[name].default))
        for name in methods
        for ratio in (ratios if PEERS[name].by_ratio else [0.0])
    ]
    units = [Unit(document, BOUNDS) for document in range(documents)]
    for several in _batched(range(documents), block):
        units += [Unit(document, *column) for column in columns for document in several]
    return units


def table(answered: Answers, chosen: dict[str, Options], study: Study) -> list[dict[str, Any]]:
    """The rows of the bounds, and of every method at every ratio, over the documents of ``answered``."""
    columns: dict[tuple[str, float], Answers] = {}
    for unit, results in answered.items():
        columns.setdefault((unit.method, unit.ratio), {})[unit] = results
    asked = columns.pop((BOUNDS, 0.0))
    where = made(study, next(iter(asked)))
    bounds = [result for results in asked.values() for result in results or []]
    rows = [row(bounds, name, ratio) | where for name, ratio in (("full_text", 1.0), ("no_text", None))]
    for (name, ratio), parts in columns.items():
        about = {
            "options": chosen.get(name, PEERS[name].default),
            "searched": name in chosen,
            "source": PEERS[name].source,
            "steps": study.settings.training.steps if PEERS[name].start else None,
        }
        if diverged := list(parts.values()).count(None):
            print(f"{name} diverged at ratio {ratio:g} on {diverged} documents with {about['options']}")
            continue
        results_of_method = [result for results in parts.values() for result in results or []]
        ahead = _ahead(columns.get((OURS, ratio), {}), parts, rows[0]["headline"]) if name != OURS else {}
        figures = row(bounds + results_of_method, name, ratio or None)
        rows.append(figures | about | ahead | made(study, next(iter(parts))))
    return rows


def _ahead(ours: Answers, theirs: Answers, headline: Sequence[str]) -> dict[str, Any]:
    """By how much of the score LCC is ahead of a peer of its ratio, paired; nothing if it was not asked."""
    left, right = (
        [result for results in parts.values() for result in results or [] if result.task in headline]
        for parts in (ours, theirs)
    )
    ahead = difference(left, right)
    return {"lcc_ahead": ahead.points, "lcc_ahead_interval": ahead.interval} if ahead else {}


def run(study: Study, units: Sequence[Unit], workers: int, write: Callable[[Answers], None]) -> None:
    """Answer the units, and hand all results on documents that are done to ``write`` whenever there is one more."""
    answered: Answers = {}
    left = {document: sum(unit.document == document for unit in units) for document in range(len(study.documents))}
    began = time.monotonic()
    for unit, results in answers(study, units, workers):
        answered[unit] = results
        left[unit.document] -= 1
        clock = f"{time.monotonic() - began:.0f} s"
        print(f"{clock}: {len(answered)}/{len(units)}, {unit.folder} on document {unit.document}", file=sys.stderr)
        if not left[unit.document]:
            write({unit: answered[unit] for unit in units if not left[unit.document]})


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def main(given: list[str] | None = None) -> None:
    options = parser(__doc__ or "", 20)
    options.add_argument("--ratios", type=float, nargs="+", default=[16.0, 32.0])
    options.add_argument("--lookups", type=int, default=2, help="documents with needles, and as many lists of pairs")
    options.add_argument("--seed", type=int, default=TEST_SEED)
    options.add_argument("--options", type=Path, default=CHOSEN, help="what the search chose")
    arguments = options.parse_args(given)
    if arguments.seed == SEARCH_SEED:
        options.error(f"seed {SEARCH_SEED} draws the documents that options were searched on: take another")
    resumed = arguments.work.exists()
    began = time.monotonic() - (load_details(arguments.out).get("wall_seconds", 0) if resumed else 0)
    try:
        methods, study = pick(arguments.methods), make_study(arguments, arguments.lookups, arguments.seed)
    except InputError as error:
        options.error(str(error))
    chosen = load_chosen(arguments.options)

    def write(results: Answers) -> None:
        details = {"workers": arguments.workers, "resumed": resumed, "set": arguments.set}
        seconds = round(time.monotonic() - began)
        write_rows(arguments.out, table(results, chosen, study), kind=KIND, wall_seconds=seconds, **details)

    run(
        study,
        plan(len(study.documents), methods, arguments.ratios, chosen, arguments.workers),
        arguments.workers,
        write,
    )


if __name__ == "__main__":
    main()
