"""What the table and its search share: the settings of every method, and the options of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common.results_file import load_rows
from benchmarks.fidelity.methods import PEERS, Options, runnable
from benchmarks.fidelity.study import Study, draw_documents
from lcc.cli.options import parse_settings
from lcc.errors import InputError
from lcc.pipeline.settings import make_settings

TEST_SEED, SEARCH_SEED = 0, 1
CHOSEN = Path(__file__).parents[1] / "results" / "fidelity" / "peer-options.json"
# Of every trained method; the search tries others of what is a method's own, such as a LoRA's rank.
STEPS = 110
SHARED = {"steps": STEPS, "evaluate_every": 55, "rank": 8, "alpha": 16.0}
SMOKE = SHARED | {"steps": 6, "batch": 8, "general_queries": 16, "self_study_questions": 16, "evaluate_every": 3}


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
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--methods", nargs="+")
    options.add_argument("--documents", type=int, default=documents)
    options.add_argument("--lengths", type=int, nargs="+", default=[300], help="of documents, in words, in turn")
    options.add_argument("--general", type=int, default=20, help="general queries beside each document")
    options.add_argument("--steps", type=int, default=STEPS, help="of every trained method")
    options.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of every trained method")
    options.add_argument("--workers", type=int, default=1, help="processes, of one thread each if there are several")
    options.add_argument("--smoke", action="store_true", help="one short document and a few steps")
    options.add_argument("--work", type=Path, required=True, help="where answers and memories are kept")
    options.add_argument("--out", type=Path, required=True)
    return options


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
