"""Results as a table: a line for each task and method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import interval, means, resample
from .metrics import normalize
from .runner import Result

Interval = tuple[float, float] | None
ALL = "all questions"


@dataclass(frozen=True)
class Line:
    """A method's figures on a task. Intervals are 95 % and paired: all methods see the same resamples.

    Attributes:
        questions, contexts: how many.
        score: the mean of the examples' own metrics, in [0, 1].
        metrics: the mean of every metric that was measured.
        kept: score / full-text score; None where that is 0 or was not measured.
        difference: interval of score - full-text score.
        agreement: with the method of each name, the share of equal answers (normalised): 1 - agreement is drift.
        other_wordings: the score on questions that the method did not ask itself while it prepared, and how many.
        kv_bytes, seconds: medians over contexts.
    """

    task: str
    method: str
    general: bool
    questions: int
    contexts: int
    score: float
    interval: Interval
    metrics: dict[str, float]
    kept: float | None
    kept_interval: Interval
    difference: Interval
    agreement: dict[str, float]
    other_wordings: float | None
    other_wordings_count: int
    kv_bytes: float
    seconds: float


def summarize(results: Sequence[Result], bound: str = "full_text", seed: int = 0) -> list[Line]:
    """Lines by task, then method: those about the texts, all of them together, and the general ones.

    Args:
        bound: the method that ``kept`` and ``difference`` compare with.
        seed: of the resamples.
    """
    specific = [result for result in results if not result.general]
    tasks = list(dict.fromkeys(result.task for result in specific))
    groups = [(task, [result for result in specific if result.task == task]) for task in tasks]
    if len(tasks) > 1:
        groups.append((ALL, specific))
    general = [result for result in results if result.general]
    for task in dict.fromkeys(result.task for result in general):
        groups.append((task, [result for result in general if result.task == task]))
    return [line for task, answered in groups for line in _lines(task, answered, bound, seed)]


def _lines(task: str, results: Sequence[Result], bound: str, seed: int) -> list[Line]:
    """The lines of one task, all methods on the same examples in the same order."""
    by_method: dict[str, list[Result]] = {}
    for result in results:
        by_method.setdefault(result.method, []).append(result)
    first = next(iter(by_method.values()))
    counts = resample([result.context for result in first], seed=seed)
    drawn = {name: means(counts, [result.score for result in answered]) for name, answered in by_method.items()}
    lines = []
    for name, answered in by_method.items():
        score, full = _score(answered), _score(by_method[bound]) if bound in by_method else 0.0
        other = [result for result in answered if not result.trained_on]
        with np.errstate(divide="ignore", invalid="ignore"):
            kept = drawn[name] / drawn[bound] if full else np.empty(0)
        per_context = {result.context: result for result in answered}.values()
        lines.append(
            Line(
                task=task,
                method=name,
                general=answered[0].general,
                questions=len(answered),
                contexts=len(per_context),
                score=score,
                interval=interval(drawn[name]),
                metrics={metric: statistics.fmean(r.scores[metric] for r in answered) for metric in answered[0].scores},
                kept=score / full if full else None,
                kept_interval=interval(kept),
                difference=interval(drawn[name] - drawn[bound]) if bound in drawn else None,
                agreement={other_name: _agreement(answered, theirs) for other_name, theirs in by_method.items()},
                other_wordings=_score(other) if other else None,
                other_wordings_count=len(other),
                kv_bytes=statistics.median(result.kv_bytes for result in per_context),
                seconds=statistics.median(result.seconds for result in per_context),
            )
        )
    return lines


def _score(results: Sequence[Result]) -> float:
    return statistics.fmean(result.score for result in results)


def _agreement(left: Sequence[Result], right: Sequence[Result]) -> float:
    return statistics.fmean(
        normalize(a.prediction) == normalize(b.prediction) for a, b in zip(left, right, strict=True)
    )
