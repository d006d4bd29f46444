"""The best options of LCC and of every peer, on documents that no table shows.

    python -m benchmarks.fidelity_search --out benchmarks/results/peer-options.json --work DIR --ratio 16

Every variant of a method is tried. One that is trained climbs: from where it starts, along every second learning rate
of ``RATES`` for as long as the best so far has a neighbour that was not tried, then in the same way along each, so that
the best is at no edge. Best is the highest mean of what is kept of the questions and of the general queries. A second
call goes on from DIR, and keeps the rows of methods that it was not asked to search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.environment import describe
from benchmarks.fidelity import SEARCH_SEED, make_study, parser, pick
from benchmarks.fidelity_peers import PEERS, Options
from benchmarks.fidelity_peers.workbench import RATES
from benchmarks.fidelity_rows import row
from benchmarks.fidelity_study import BOUNDS, Study, Unit, answers
from benchmarks.results_file import Row, load_rows, write_rows
from lcc.errors import InputError
from lcc.evaluation import Result

STRIDES = (2, 1)
Try = Callable[[Sequence[Options]], list[Row]]


def search(attempt: Try, name: str) -> list[Row]:
    """A row for each of the options tried, the best of them marked as chosen.

    Args:
        attempt: gives the rows of several options of the method.
    """
    peer = PEERS[name]
    if peer.start is None:
        rows = attempt(peer.variants)
    else:
        rows = [
            found
            for variant in peer.variants
            for found in climb(
                lambda rates, it=variant: attempt([peer.options(rate, it) for rate in rates]), peer.start
            )
        ]
    best = max(rows, key=kept)
    return [found | {"chosen": found is best} for found in rows]


def climb(attempt: Callable[[Sequence[float]], list[Row]], start: float) -> list[Row]:
    """The rows of the rates tried, in their order: ``start``, its neighbours, and on until the best has both of its."""
    found: dict[int, Row] = {}
    best = RATES.index(start)
    for stride in STRIDES:
        while wanted := [i for i in (best - stride, best, best + stride) if 0 <= i < len(RATES) and i not in found]:
            found.update(zip(wanted, attempt([RATES[i] for i in wanted]), strict=True))
            best = max(sorted(found), key=lambda i: kept(found[i]))
    return [found[i] for i in sorted(found)]


def kept(found: Row) -> float:
    """What the search maximises."""
    return -1.0 if found["diverged"] else (found["qa_kept"] + found["general_kept"]) / 2


def attempts(study: Study, name: str, ratio: float, workers: int, bounds: list[Result]) -> Try:
    """Tries options of one method on all documents."""
    where = describe()

    def attempt(several: Sequence[Options]) -> list[Row]:
        units = [Unit(number, name, ratio, options) for options in several for number in range(len(study.documents))]
        found = dict(answers(study, units, workers))
        return [told([found[unit] for unit in units if unit.options == options], options) for options in several]

    def told(parts: Sequence[list[Result] | None], options: Options) -> Row:
        about = {"options": options, "diverged": None in parts, "steps": study.settings.steps} | where
        if None in parts:
            return {"method": name, "ratio": ratio or None} | about
        results = [result for results in parts for result in results or []]
        found = row(bounds + results, name, ratio or None) | about
        print(f"{name} {options}: {found['qa_kept']:.3f} of questions, {found['general_kept']:.3f} of general queries")
        return found

    return attempt


def main(given: list[str] | None = None) -> None:
    options = parser(__doc__ or "", 2)
    options.add_argument("--ratio", type=float, default=16.0)
    arguments = options.parse_args(given)
    try:
        methods, study = pick(arguments.methods), make_study(arguments, 0, SEARCH_SEED)
    except InputError as error:
        options.error(str(error))
    both = answers(study, [Unit(number, BOUNDS) for number in range(len(study.documents))], arguments.workers)
    bounds = [result for _, results in both for result in results or []]
    rows = load_rows(arguments.out)
    for name in methods:
        ratio = arguments.ratio if PEERS[name].by_ratio else 0.0
        tried = search(attempts(study, name, ratio, arguments.workers, bounds), name)
        rows = [found for found in rows if found["method"] != name] + tried
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
