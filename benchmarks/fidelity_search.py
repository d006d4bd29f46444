"""The best options of LCC and of every peer, each from its own grid, on documents that no table shows.

    python -m benchmarks.fidelity_search --out benchmarks/results/peer-options.json --work DIR --ratio 16

Best is the highest mean of what is kept of the questions and of the general queries. A second call goes on from DIR,
and keeps the rows of methods that it was not asked to search.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.environment import describe
from benchmarks.fidelity import SEARCH_SEED, Job, bounds, make_job, parser, pick, row, run, write_rows
from benchmarks.fidelity_peers import PEERS, Options
from lcc.errors import InputError


def search(job: Job, name: str, ratio: float) -> list[dict[str, Any]]:
    """A row for each of the method's options, the best of them marked as chosen."""
    both, where = bounds(job), describe()
    at = ratio if PEERS[name].by_ratio else 0.0
    rows = [_try(job, both, name, at, options) | where for options in PEERS[name].grid]
    best = max(rows, key=_kept)
    return [found | {"chosen": found is best} for found in rows]


def _try(job: Job, both: list, name: str, ratio: float, options: Options) -> dict[str, Any]:
    label = ",".join(f"{option}={value:g}" for option, value in options.items()) or "default"
    results = run(Job(**{**vars(job), "folder": job.folder / label}), name, ratio, options)
    told = {"options": options, "diverged": results is None, "steps": job.settings.steps}
    return (row(both + results, name, ratio) if results else {"method": name, "ratio": ratio}) | told


def _kept(found: dict[str, Any]) -> float:
    return -1.0 if found["diverged"] else (found["qa_kept"] + found["general_kept"]) / 2


def main(given: list[str] | None = None) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--ratio", type=float, default=16.0)
    options.add_argument("--documents", type=int, default=3)
    arguments = options.parse_args(given)
    try:
        methods = pick(arguments.methods)
    except InputError as error:
        options.error(str(error))
    job = make_job(arguments, arguments.documents, SEARCH_SEED)
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    for name in methods:
        rows = [found for found in rows if found["method"] != name] + search(job, name, arguments.ratio)
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
