"""The best options of LCC and of every peer, on documents that no table shows.

    python -m benchmarks.fidelity.search --out benchmarks/results/fidelity/peer-options.json --work DIR --documents 4

Every variant of a method is tried. One that is trained climbs: from where it starts, along every second learning rate
of ``RATES`` for as long as the best so far has a neighbour that was not tried, then in the same way along each, so that
the best is at no edge. Best is the highest mean of what is kept of the questions and of the general queries, at all of
the ratios. A second call goes on from DIR, and keeps the rows of methods that it was not asked to search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from statistics import fmean

from benchmarks.common.environment import describe
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.fidelity.methods import PEERS, Options
from benchmarks.fidelity.methods.workbench import RATES
from benchmarks.fidelity.options import SEARCH_SEED, make_study, parser, pick
from benchmarks.fidelity.rows import row
from benchmarks.fidelity.study import BOUNDS, Study, Unit, answers
from lcc.errors import InputError
from lcc.evaluation import Result

STRIDES = (2, 1)
# What some options keep: a row for each ratio.
Tried = list[Row]
Try = Callable[[Sequence[Options]], list[Tried]]


def search(attempt: Try, name: str) -> list[Row]:
    """A row for each of the options tried and each ratio, those of the best marked as chosen.

    Args:
        attempt: gives the rows of several options of the method.
    """
    peer = PEERS[name]
    if peer.start is None:
        tried = attempt(peer.variants)
    else:
        tried = [
            rows
            for variant in peer.variants
            for rows in climb(lambda rates, it=variant: attempt([peer.options(rate, it) for rate in rates]), peer.start)
        ]
    best = max(tried, key=kept)
    return [row | {"chosen": rows is best} for rows in tried for row in rows]


def climb(attempt: Callable[[Sequence[float]], list[Tried]], start: float) -> list[Tried]:
    """What the rates tried keep, in their order: ``start``, its neighbours, and on until the best has both of its."""
    tried: dict[int, Tried] = {}
    best = RATES.index(start)
    for stride in STRIDES:
        while wanted := [i for i in (best - stride, best, best + stride) if 0 <= i < len(RATES) and i not in tried]:
            tried.update(zip(wanted, attempt([RATES[i] for i in wanted]), strict=True))
            best = max(sorted(tried), key=lambda i: kept(tried[i]))
    return [tried[i] for i in sorted(tried)]


def kept(tried: Tried) -> float:
    """What the search maximises."""
    return fmean(-1.0 if row["diverged"] else (row["qa_kept"] + row["general_kept"]) / 2 for row in tried)


def attempts(study: Study, name: str, ratios: Sequence[float], workers: int, bounds: list[Result]) -> Try:
    """Tries options of one method on all documents, at every ratio."""
    where = describe()

    def attempt(several: Sequence[Options]) -> list[Tried]:
        documents = range(len(study.documents))
        units = [Unit(number, name, ratio, it) for it in several for ratio in ratios for number in documents]
        answered = dict(answers(study, units, workers))
        return [
            [row_of([answered[Unit(n, name, ratio, it)] for n in documents], it, ratio) for ratio in ratios]
            for it in several
        ]

    def row_of(parts: Sequence[list[Result] | None], options: Options, ratio: float) -> Row:
        about = {"options": options, "diverged": None in parts, "steps": study.settings.training.steps} | where
        if None in parts:
            return {"method": name, "ratio": ratio or None} | about
        results = [result for results in parts for result in results or []]
        figures = row(bounds + results, name, ratio or None) | about
        at = f" at {ratio:g}" if ratio else ""
        print(
            f"{name} {options}{at}: {figures['qa_kept']:.3f} of questions, "
            f"{figures['general_kept']:.3f} of general queries"
        )
        return figures

    return attempt


def main(given: list[str] | None = None) -> None:
    options = parser(__doc__ or "", 2)
    options.add_argument("--ratios", type=float, nargs="+", default=[16.0, 32.0])
    arguments = options.parse_args(given)
    try:
        methods, study = pick(arguments.methods), make_study(arguments, 0, SEARCH_SEED)
    except InputError as error:
        options.error(str(error))
    both = answers(study, [Unit(number, BOUNDS) for number in range(len(study.documents))], arguments.workers)
    bounds = [result for _, results in both for result in results or []]
    sweep = Sweep(arguments.out, itemgetter("method"))
    for name in methods:
        ratios = arguments.ratios if PEERS[name].by_ratio else [0.0]
        sweep.replace(name, search(attempts(study, name, ratios, arguments.workers, bounds), name))


if __name__ == "__main__":
    main()
