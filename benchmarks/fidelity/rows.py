"""A row of the fidelity table: a method's figures from its answers and those of the full text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from lcc.evaluation import Line, Result, summarize
from lcc.evaluation.summary import Interval
from lcc.synthetic.people import ASKED_WORDINGS, ATTRIBUTES

BOUND = "full_text"
# Tasks that the full text itself fails more often are reported, and left out of the headline.
SETTLED = 0.5
HEADLINE = ("fiction easy", "fiction medium", "fiction hard", "dialogue opening", "dialogue")
UNASKED = re.compile(
    "|".join(
        re.escape(wording).replace(r"\{n\}", ".+")
        for attribute in ATTRIBUTES.values()
        for wording in attribute.questions[ASKED_WORDINGS:]
    )
)


def row(results: Sequence[Result], method: str, ratio: float | None) -> dict[str, Any]:
    """A row of the results file; kept = score / full-text score, intervals are 95 %, bytes and seconds a document.

    Args:
        results: the method's and the full text's.
    """
    tasks = {task: _line(results, method, lambda result, task=task: result.task == task) for task in _tasks(results)}
    headline = settled(results)
    about = _line(results, method, lambda result: result.task in headline)
    general = _line(results, method, lambda result: result.general)
    unasked = {
        result.key: result.trained_on
        for result in results
        if result.method == method and result.task in headline and UNASKED.fullmatch(result.question)
    }
    other = _line(results, method, lambda result: unasked.get(result.key) is False)
    any_line = about or next(iter(tasks.values()))
    return {
        "method": method,
        "ratio": ratio,
        "qa_kept": about and about.kept,
        "general_kept": general and general.kept,
        "kv_bytes": any_line.kv_bytes,
        "seconds": any_line.seconds,
        "interval": about and about.kept_interval,
        "general_interval": general and general.kept_interval,
        "qa_score": about and about.score,
        "general_score": general and general.score,
        "headline": headline,
        "tasks": {task: line.kept for task, line in tasks.items()},
        "task_scores": {task: line.score for task, line in tasks.items()},
        "other_wordings": other and other.kept,
        "other_wordings_interval": other and other.kept_interval,
        "other_wordings_count": other.questions if other else 0,
        "other_wordings_asked": sum(unasked.values()),
        "questions": about.questions if about else 0,
        "general_questions": general.questions if general else 0,
        "documents": any_line.contexts,
    }


def settled(results: Sequence[Result]) -> list[str]:
    """The tasks of the headline: those that the full text does not fail more often than not."""
    full = [result for result in results if result.method == BOUND]
    scores = {task: [result.score for result in full if result.task == task] for task in HEADLINE}
    return [task for task, of_task in scores.items() if of_task and fmean(of_task) >= SETTLED]


class Difference(NamedTuple):
    """Points of the score, their paired 95 % interval, and the number of questions."""

    points: float
    interval: Interval
    questions: int


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> Difference | None:
    """The score of ``ours`` minus that of ``theirs`` on what both were asked; None if that is nothing."""
    left, right = ({(result.key, result.task): result for result in results} for results in (ours, theirs))
    both = [asked for asked in left if asked in right]
    if not both:
        return None
    paired = [
        replace(side[asked], method=name, task="") for name, side in (("", left), (BOUND, right)) for asked in both
    ]
    first, second = summarize(paired, BOUND)
    return Difference(first.score - second.score, first.difference, len(both))


def _tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results if not result.general))


def _line(results: Sequence[Result], method: str, which: Callable[[Result], bool]) -> Line | None:
    """One line over all chosen results of the method, whatever their tasks; None if there are none."""
    chosen = [replace(result, task="") for result in results if which(result)]
    return next((line for line in summarize(chosen, BOUND) if line.method == method), None)
