"""Two methods' scores on the same questions, and what chance could make of their difference.

    python -m benchmarks.fidelity.paired DIR lcc-16 direct_kv-16
    python -m benchmarks.fidelity.paired DIR lcc-16 lcc-16 --other-work OTHER

DIR and OTHER are the ``--work`` folders of ``benchmarks.fidelity``; a column is named METHOD-RATIO (ratio 0 for a
method that has none), or in full where a search has tried several options.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.fidelity.rows import difference, settled
from benchmarks.fidelity.study import BOUNDS
from lcc.errors import InputError
from lcc.evaluation import Result


def read_column(work: Path, column: str) -> list[Result]:
    """The answers of one column, all documents'.

    Raises:
        InputError: there are none, or a document has answers under several options.
    """
    paths = sorted({path for name in (column, f"{column}-*") for path in work.glob(f"answers/*/{name}/results.jsonl")})
    if not paths:
        raise InputError(f"{work} has no answers of {column}: columns are named METHOD-RATIO, such as lcc-16")
    if len({path.parent.parent for path in paths}) < len(paths):
        raise InputError(f"{work} has {column} with several options: name one in full, such as {paths[0].parent.name}")
    return [Result(**json.loads(line)) for path in paths for line in path.read_text("utf-8").splitlines()]


def compare(work: Path, column: str, other_work: Path, other: str) -> list[str]:
    """A line for the questions of the headline that both were asked, and one for the general queries.

    Raises:
        InputError: of the columns, or there is no question in common.
    """
    headline = settled(read_column(work, f"{BOUNDS}-0"))
    columns = read_column(work, column), read_column(other_work, other)
    lines = []
    for title, which in (("questions", lambda r: r.task in headline), ("general queries", lambda r: r.general)):
        ours, theirs = (list(filter(which, results)) for results in columns)
        ahead = difference(ours, theirs)
        if ahead is None:
            raise InputError(f"{column} and {other} were asked no {title} in common: they are of other documents")
        low, high = (100 * end for end in ahead.interval or (ahead.points,) * 2)
        lines.append(f"{title}: {100 * ahead.points:+.1f} points ({low:+.1f} to {high:+.1f}) of {ahead.questions}")
    return lines


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("column")
    parser.add_argument("other")
    parser.add_argument("--other-work", type=Path, help="where the other column is, if elsewhere")
    arguments = parser.parse_args(given)
    try:
        lines = compare(arguments.work, arguments.column, arguments.other_work or arguments.work, arguments.other)
    except (InputError, OSError) as error:
        parser.error(str(error))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
