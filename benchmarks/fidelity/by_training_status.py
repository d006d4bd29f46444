"""What a method keeps of the questions that compile trained on, held out, and never asked.

    python -m benchmarks.fidelity.by_training_status DIR lcc-16

DIR is the ``--work`` folder of ``benchmarks.fidelity``; a column is named METHOD-RATIO, of a method that is trained on
what the model asks itself. A line a task: of the answers that the full text gets right, those that the column does too.
"""

from __future__ import annotations

import argparse
from collections import Counter
from itertools import chain
from pathlib import Path

import torch

from benchmarks.common.models import load
from benchmarks.fidelity.paired import read_column
from benchmarks.fidelity.rows import BOUND
from benchmarks.fidelity.study import BOUNDS, digest
from lcc.data.cache import FORMAT, unpack
from lcc.errors import InputError
from lcc.evaluation import Result
from lcc.text.chat_format import turns_of
from lcc.utils.tensor_files import load_tensors

WAYS = ("trained on", "held out", "never asked")
Way = dict[tuple[str, ...], str]


def read_ways(work: Path) -> dict[str, Way]:
    """By the digest of each document's text, what became of each question that the model asked itself.

    Raises:
        InputError: there are none, or a document has several sets of them.
    """
    _, tokenizer = load()
    ways: dict[str, Way] = {}
    for path in sorted(work.glob("surrogates/surrogate-*.safetensors")):
        data = unpack(*load_tensors(path, FORMAT), torch.device("cpu"))
        ids = [token for piece in data.reconstruction for token in piece.response_ids]
        text = digest(tokenizer.decode(ids, skip_special_tokens=True))
        if text in ways:
            raise InputError(f"{work} has questions of several settings about one text: take a folder of one run")
        parts = zip(WAYS, (data.train, data.held_out), strict=False)
        ways[text] = {
            turns_of(sample.query): way for way, part in parts for sample in part if sample.stream == "self_study"
        }
    if not ways:
        raise InputError(f"{work} has no questions that a model asked itself: was a trained method among those run?")
    return ways


def count(work: Path, column: str) -> dict[str, tuple[Counter[str], Counter[str]]]:
    """By task, for each way: the answers that the full text gets right, and those of them that the column does too.

    Raises:
        InputError: of the column or the folder, or a text of the one is not in the other.
    """
    bounds = read_column(work, f"{BOUNDS}-0")
    right = {_place(result) for result in bounds if result.method == BOUND and result.score >= 0.5}
    ways = read_ways(work)
    counts: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for result in read_column(work, column):
        if result.general or _place(result) not in right:
            continue
        if result.context not in ways:
            raise InputError(f"{work} has answers about a text, and no questions that the model asked itself about it")
        way = ways[result.context].get((*chain.from_iterable(result.history), result.question), WAYS[-1])
        asked, kept = counts.setdefault(result.task, (Counter(), Counter()))
        asked[way] += 1
        kept[way] += result.score >= 0.5
    return counts


def _place(result: Result) -> tuple[str, str]:
    return result.key, result.task


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("column")
    arguments = parser.parse_args(given)
    try:
        counts = count(arguments.work, arguments.column)
    except (InputError, OSError) as error:
        parser.error(str(error))
    asked, kept = (sum((part[side] for part in counts.values()), Counter()) for side in (0, 1))
    print("".ljust(18) + "".join(way.rjust(22) for way in WAYS))
    for task, (of, some) in (counts | {"all": (asked, kept)}).items():
        print(task.ljust(18) + "".join(_share(some[way], of[way]).rjust(22) for way in WAYS))


def _share(kept: int, asked: int) -> str:
    return f"{kept} of {asked}" + (f" ({kept / asked:.1%})" if asked else "")


if __name__ == "__main__":
    main()
