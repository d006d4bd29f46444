"""Ask every method every question, and keep the answers on disk as they come."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, MemoryFileError
from ..utils.hashing import json_digest
from ..utils.outputs import Output, check_folder, make_folder, write_bytes
from ..utils.progress import Reporter, reporting
from ..utils.row_store import RowStore
from .examples import JUDGE, Example
from .judge import HIGHEST_SCORE, Judge
from .methods import Method
from .metrics import METRICS, check_metric, usable_metrics

PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
# Columns of what is kept of an answer, and of a verdict.
ANSWER = {"key": str, "prediction": str, "trained_on": bool, "kv_bytes": int, "seconds": float}
VERDICT = {"key": str, "prediction": str, "score": float, "reason": str}


@dataclass(frozen=True)
class Result:
    """One method's answer to one example: a line of the per-question JSONL.

    Attributes:
        key: the example's.
        context: a digest of the context, equal for questions about the same text.
        scores: by metric whose package is installed, in [0, 1]; the judge's is its 0-5 divided by 5.
        metric: the one that the summary calls the score.
        trained_on: the method asked itself this very question while it prepared.
        kv_bytes, seconds: of the method on this context, see ``Answers``.
    """

    key: str
    method: str
    task: str
    general: bool
    metric: str
    context: str
    history: tuple[tuple[str, str], ...]
    question: str
    answers: tuple[str, ...]
    prediction: str
    scores: dict[str, float]
    trained_on: bool
    kv_bytes: int
    seconds: float

    @property
    def score(self) -> float:
        """By the example's own metric."""
        return self.scores[self.metric]


def evaluate(
    methods: Sequence[Method],
    examples: Iterable[Example],
    folder: str | Path,
    judge: Judge | None = None,
    progress: bool | Reporter = True,
) -> list[Result]:
    """Answer every example with every method, score the answers, and write them to ``folder/results.jsonl``.

    Answers are on disk as soon as a context is done, verdicts one by one: a killed run goes on where it stopped, and
    one with more methods or examples does only what is new. An example that occurs twice counts once; where two differ
    in task, metric or references alone, the method is asked once for both.

    Args:
        judge: scores every answer, beside the other metrics.
        progress: show progress on stderr, or the reporter to show it with.

    Raises:
        InputError: no examples, two methods of one name, a name that cannot be a file's, an example that wants a judge
            where there is none or a metric whose package is not installed, or one that a method refuses.
        MismatchError: the folder holds answers of another model or other settings under a method's name.
        MemoryFileError: the folder cannot be read or written.
    """
    folder = Path(folder)
    distinct, scored = list(dict.fromkeys(examples)), usable_metrics()
    _check(methods, distinct, judge)
    check_results(folder)
    make_folder(folder)
    make_folder(folder / "answers")
    with reporting(progress) as reporter:
        results = []
        for method in methods:
            rows = _answers(method, {example.key: example for example in distinct}, folder, reporter)
            results += [_result(example, method.name, rows[example.key], scored) for example in distinct]
        if judge:
            results = _judged(results, distinct * len(methods), judge, folder, reporter)
    lines = (json.dumps(asdict(result)) + "\n" for result in results)
    write_bytes(_results(folder), "".join(lines).encode())
    return results


def check_results(folder: Path) -> None:
    """Refuse a folder that the results cannot go to.

    Raises:
        MemoryFileError: it cannot be used, or its ``results.jsonl`` holds something else.
    """
    check_folder(folder)
    if folder.is_dir():
        _results(folder).check()


def _results(folder: Path) -> Output:
    return Output(folder / "results.jsonl", ours=_earlier_results, remedy="move it away, or name another folder")


def _earlier_results(path: Path) -> None:
    """The rule of results: earlier ones may be replaced."""
    try:
        with path.open("rb") as file:
            row = json.loads(file.readline())
        known = {field.name for field in fields(Result)} <= set(row)
    except (OSError, ValueError, TypeError, RecursionError):
        known = False
    if not known:
        raise MemoryFileError(f"{path} holds no results of an evaluation")


def _check(methods: Sequence[Method], examples: Iterable[Example], judge: Judge | None) -> None:
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise InputError(f"two methods have the same name: {', '.join(names)}")
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise InputError(f"a method's name is {name!r}: take letters, digits, - and _ alone, it names a file")
    metrics = {example.metric for example in examples}
    if not names or not metrics:
        raise InputError("there is nothing to evaluate: give at least one method and one example")
    if JUDGE in metrics and not judge:
        raise InputError("some examples are scored by a judge: name its endpoint, or choose another metric")
    for metric in metrics - {JUDGE}:
        check_metric(metric)


def _answers(
    method: Method, examples: dict[str, Example], folder: Path, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    """The method's stored answers to ``examples`` by key, after asking what was not there."""
    store = RowStore(folder / "answers" / f"{method.name}.jsonl", method.identity, ANSWER)
    rows = {row["key"]: row for row in store.rows}
    waiting: dict[str, list[Example]] = defaultdict(list)
    for key, example in examples.items():
        if key not in rows:
            waiting[example.context].append(example)
    reporter.count(method.name, sum(key in rows for key in examples), len(examples))
    for context, asked in waiting.items():
        answers = method.answer(context, asked)
        added = [
            {
                "key": example.key,
                "prediction": text,
                "trained_on": example.question in answers.trained_on,
                "kv_bytes": answers.kv_bytes,
                "seconds": answers.seconds,
            }
            for example, text in zip(asked, answers.texts, strict=True)
        ]
        store.append(added)
        rows.update((row["key"], row) for row in added)
        reporter.count(method.name, sum(key in rows for key in examples), len(examples))
    return {key: rows[key] for key in examples}


def _result(example: Example, method: str, row: dict[str, Any], scored: Iterable[str]) -> Result:
    return Result(
        method=method,
        task=example.task,
        general=example.general,
        metric=example.metric,
        context=json_digest(example.context)[:24],
        history=example.history,
        question=example.question,
        answers=example.answers,
        scores={name: METRICS[name](row["prediction"], example.answers) for name in scored},
        **row,
    )


def _judged(
    results: list[Result], examples: list[Example], judge: Judge, folder: Path, reporter: Reporter
) -> list[Result]:
    """``results``, each of its example, with the judge's scores; equal answers to an example are judged once."""
    store = RowStore(folder / "verdicts.jsonl", judge.identity, VERDICT)
    scores = {row["key"]: row["score"] for row in store.rows}
    keys = [json_digest([result.key, result.answers, result.prediction])[:24] for result in results]
    answered = [(example, result.prediction) for example, result in zip(examples, results, strict=True)]
    wanted = dict(zip(keys, answered, strict=True))
    waiting = {key: pair for key, pair in wanted.items() if key not in scores}
    for key, verdict in zip(waiting, judge.verdicts(list(waiting.values())), strict=True):
        store.append([{"key": key, "prediction": waiting[key][1], **asdict(verdict)}])
        scores[key] = verdict.score
        reporter.count(JUDGE, sum(key in scores for key in wanted), len(wanted))
    return [
        replace(result, scores=result.scores | {JUDGE: scores[key] / HIGHEST_SCORE})
        for key, result in zip(keys, results, strict=True)
    ]
