"""What LCC and its peers keep of unseen documents, at the same bytes, in one run.

    python -m benchmarks.fidelity --out benchmarks/results/fidelity.json --work DIR --workers 2
    python -m benchmarks.fidelity --smoke --out smoke.json --work DIR

Every answer is in DIR as soon as it is there, and the table so far is written when another document is done. A second
call goes on from there, in another environment if need be: kvpress' methods want one of their own. Options that
``benchmarks.fidelity_search`` has chosen are read from ``--options``; a method without any takes its defaults.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.fidelity_peers import PEERS, Options, runnable
from benchmarks.fidelity_rows import difference, row
from benchmarks.fidelity_study import BOUNDS, Study, Unit, answers, draw_documents, made
from benchmarks.results_file import load_rows, load_told, write_rows
from lcc.cli.options import parse_settings
from lcc.errors import InputError
from lcc.evaluation import Result
from lcc.pipeline.settings import RECIPES, make_settings

TEST_SEED, SEARCH_SEED = 0, 1
OURS = "lcc"
CHOSEN = Path(__file__).parent / "results" / "peer-options.json"
# Of every trained method; the search tries others of what is a method's own, such as a LoRA's rank.
SHARED = {"recipe": "fast", "rank": 8, "alpha": 16.0}
SMOKE = SHARED | {"steps": 6, "batch": 8, "general_queries": 16, "self_study_questions": 16, "evaluate_every": 3}
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


def table(found: Answers, chosen: dict[str, Options], study: Study) -> list[dict[str, Any]]:
    """The rows of the bounds, and of every method at every ratio, over the documents of ``found``."""
    columns: dict[tuple[str, float], Answers] = {}
    for unit, results in found.items():
        columns.setdefault((unit.method, unit.ratio), {})[unit] = results
    asked = columns.pop((BOUNDS, 0.0))
    where = made(study, next(iter(asked)))
    bounds = [result for results in asked.values() for result in results or []]
    rows = [row(bounds, name, ratio) | where for name, ratio in (("full_text", 1.0), ("no_text", None))]
    for (name, ratio), parts in columns.items():
        told = {
            "options": chosen.get(name, PEERS[name].default),
            "searched": name in chosen,
            "source": PEERS[name].source,
            "steps": study.settings.training.steps if PEERS[name].start else None,
        }
        if diverged := list(parts.values()).count(None):
            print(f"{name} diverged at ratio {ratio:g} on {diverged} documents with {told['options']}")
            continue
        mine = [result for results in parts.values() for result in results or []]
        ahead = _ahead(columns.get((OURS, ratio), {}), parts, rows[0]["headline"]) if name != OURS else {}
        rows.append(row(bounds + mine, name, ratio or None) | told | ahead | made(study, next(iter(parts))))
    return rows


def _ahead(ours: Answers, theirs: Answers, headline: Sequence[str]) -> dict[str, Any]:
    """By how much of the score LCC is ahead of a peer of its ratio, paired; nothing if it was not asked."""
    mine, others = (
        [result for results in parts.values() for result in results or [] if result.task in headline]
        for parts in (ours, theirs)
    )
    found = difference(mine, others)
    return {"lcc_ahead": found.points, "lcc_ahead_interval": found.interval} if found else {}


def run(study: Study, units: Sequence[Unit], workers: int, write: Callable[[Answers], None]) -> None:
    """Answer the units, and hand all results on documents that are done to ``write`` whenever there is one more."""
    found: Answers = {}
    left = {document: sum(unit.document == document for unit in units) for document in range(len(study.documents))}
    began = time.monotonic()
    for unit, results in answers(study, units, workers):
        found[unit] = results
        left[unit.document] -= 1
        clock = f"{time.monotonic() - began:.0f} s"
        print(f"{clock}: {len(found)}/{len(units)}, {unit.folder} on document {unit.document}", file=sys.stderr)
        if not left[unit.document]:
            write({unit: found[unit] for unit in units if not left[unit.document]})


def load_chosen(path: Path) -> dict[str, Options]:
    """The options that the search chose, by method; none if there was no search."""
    return {row["method"]: row["options"] for row in load_rows(path) if row["chosen"]}


def pick(names: Sequence[str] | None) -> list[str]:
    """The methods to run: those named, or all that can; says which cannot and why.

    Raises:
        InputError: a named method is unknown or cannot run.
    """
    reasons = runnable()
    for name in names or []:
        if reasons.get(name, "no such method") is not None:
            raise InputError(f"{name}: {reasons.get(name, 'no such method')}; there are {', '.join(PEERS)}")
    for name, reason in reasons.items():
        if reason and not names:
            print(f"not run: {name} ({reason})")
    return list(names or (name for name, reason in reasons.items() if not reason))


def parser(description: str, documents: int) -> argparse.ArgumentParser:
    """The options that the table and the search share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--methods", nargs="+")
    found.add_argument("--documents", type=int, default=documents)
    found.add_argument("--lengths", type=int, nargs="+", default=[300], help="of documents, in words, in turn")
    found.add_argument("--general", type=int, default=20, help="general queries beside each document")
    found.add_argument("--steps", type=int, default=RECIPES["fast"]["steps"], help="of every trained method")
    found.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every trained method")
    found.add_argument("--workers", type=int, default=1, help="processes, of one thread each if there are several")
    found.add_argument("--smoke", action="store_true", help="one short document and a few steps")
    found.add_argument("--work", type=Path, required=True, help="where answers and memories are kept")
    found.add_argument("--out", type=Path, required=True)
    return found


def make_study(arguments: argparse.Namespace, lookups: int, seed: int) -> Study:
    """The study that the options describe.

    Raises:
        InputError: of a setting.
    """
    if arguments.workers > 1:
        torch.set_num_threads(1)
    shared = SMOKE if arguments.smoke else SHARED | {"steps": arguments.steps}
    settings = make_settings(**shared | parse_settings(arguments.set))
    if arguments.smoke:
        return Study(draw_documents(1, 0, [120], 4, seed), settings, arguments.work)
    documents = draw_documents(arguments.documents, lookups, arguments.lengths, arguments.general, seed)
    return Study(documents, settings, arguments.work)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def main(given: list[str] | None = None) -> None:
    found = parser(__doc__ or "", 20)
    found.add_argument("--ratios", type=float, nargs="+", default=[16.0, 32.0])
    found.add_argument("--lookups", type=int, default=2, help="documents with needles, and as many lists of pairs")
    found.add_argument("--seed", type=int, default=TEST_SEED)
    found.add_argument("--options", type=Path, default=CHOSEN, help="what the search chose")
    arguments = found.parse_args(given)
    if arguments.seed == SEARCH_SEED:
        found.error(f"seed {SEARCH_SEED} draws the documents that options were searched on: take another")
    resumed = arguments.work.exists()
    began = time.monotonic() - (load_told(arguments.out).get("wall_seconds", 0) if resumed else 0)
    try:
        methods, study = pick(arguments.methods), make_study(arguments, arguments.lookups, arguments.seed)
    except InputError as error:
        found.error(str(error))
    chosen = load_chosen(arguments.options)

    def write(results: Answers) -> None:
        told = {"workers": arguments.workers, "resumed": resumed, "set": arguments.set}
        seconds = round(time.monotonic() - began)
        write_rows(arguments.out, table(results, chosen, study), wall_seconds=seconds, **told)

    run(
        study,
        plan(len(study.documents), methods, arguments.ratios, chosen, arguments.workers),
        arguments.workers,
        write,
    )


if __name__ == "__main__":
    main()
