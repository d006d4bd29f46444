"""The table and the plot of ``benchmarks.real``, for ``benchmarks.report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from benchmarks.common.report_parts import head, line, where
from benchmarks.common.results_file import Row, load_rows
from lcc.evaluation.bootstrap import interval, means, resample

from .bench import FULL_TEXT, NO_TEXT

KIND = "real"
OURS = "lcc"
# What the table shows of a row, as title and column.
COLUMNS = (
    ("KL, nats a token", "kl"), ("median KL", "kl_median"), ("same first choice", "same"), ("right", "right"),
    ("F1", "f1"), ("admits", "admitted"), ("instructions right", "instructions"), ("their KL", "instructions_kl"),
    ("their same", "instructions_same"),
)  # fmt: skip
PANELS = (("kl", "KL from the full text, nats a token"), ("same", "equal first choices"))
NOTE = """KL and equal first choices are against the same model with the full text in front, over its own answers to the
story's questions, each answer counting alike; the median is of a story's questions. Right: an accepted answer is in
what is answered. Admits: says so where the text has no answer. Instructions have nothing to do with the text. Behind a
method's KL stands how much more it is than that of `lcc` at the same ratio, over the same questions, with its 95 %
interval (paired; stories are drawn first, then their questions), and on which share of the questions it is the nearer
one to the full text. Methods that train on a story's distillation data share it: the seconds of the first of them alone
hold asking and answering."""


def read(path: Path) -> list[Row]:
    """The rows, in the file's order."""
    return load_rows(path)


def markdown(name: str, rows: Sequence[Row]) -> str:
    """A table of each ratio: a line a method, means over the stories that all its methods have."""
    lines = [f"## Real texts ({name})\n"]
    for ratio, methods in _by_ratio(rows).items():
        stories = next(iter(methods.values())).keys()
        lines += [f"### {ratio:g}x, {', '.join(stories)}\n"]
        lines += head(("method", "bytes", "seconds", *(title for title, _ in COLUMNS)))
        lines += [_line(method, list(mine.values()), methods.get(OURS)) for method, mine in methods.items()]
        lines += [""]
    places = dict.fromkeys(where(row) for row in rows)
    return "\n".join([*lines, NOTE, "", *(f"- {place}" for place in places)]) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Save a PNG: agreement with the full text against the ratio, a line a method."""
    by_ratio = _by_ratio(rows)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, (column, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows if row["method"] != FULL_TEXT):
            means = {
                ratio: fmean(row[column] for row in methods[method].values())
                for ratio, methods in by_ratio.items()
                if method in methods
            }
            style = {"linestyle": ":", "color": "grey"} if method == NO_TEXT else {}
            axes.plot(list(means), list(means.values()), marker="o", label=method, **style)
        axes.set(xlabel="ratio", ylabel=label, ylim=(0, 1.05 * axes.get_ylim()[1]))
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(by_ratio), [f"{ratio:g}x" for ratio in by_ratio])
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend()
    figure.savefig(path, dpi=110, format="png")


def _by_ratio(rows: Sequence[Row]) -> dict[float, dict[str, dict[str, Row]]]:
    """``_by_method`` of each ratio, with the rows that have none."""
    ratios = sorted({row["ratio"] for row in rows if row["ratio"]})
    return {ratio: _by_method([row for row in rows if row["ratio"] in (None, ratio)]) for ratio in ratios}


def _by_method(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """By method, the rows by story; of the stories that every method has."""
    methods: dict[str, dict[str, Row]] = {}
    for row in rows:
        methods.setdefault(row["method"], {})[row["story"]] = row
    shared = set.intersection(*(set(stories) for stories in methods.values()))
    return {
        method: {story: row for story, row in stories.items() if story in shared} for method, stories in methods.items()
    }


def _line(method: str, rows: list[Row], ours: dict[str, Row] | None) -> str:
    cells = [method, f"{fmean(row['bytes'] for row in rows):,.0f}", f"{fmean(row['seconds'] for row in rows):,.0f}"]
    for _, column in COLUMNS:
        value = fmean(row[column] for row in rows)
        cells.append(f"{value:.3f}" if "kl" in column else f"{value:.1%}")
    if ours and method != OURS:
        cells[3] += _difference(rows, [ours[row["story"]] for row in rows])
    return line(cells)


def _difference(rows: Sequence[Row], ours: Sequence[Row]) -> str:
    """How much more ``rows``' KL is than ``ours``, question by question."""
    pairs = list(zip(rows, ours, strict=True))
    more = [a - b for row, own in pairs for a, b in zip(row["kl_by_question"], own["kl_by_question"], strict=True)]
    groups = [row["story"] for row, _ in pairs for _ in row["kl_by_question"]]
    ends = interval(means(resample(groups), more))
    nearer = fmean(one < 0 for one in more)
    return f" ({fmean(more):+.3f}: {ends[0]:+.3f} to {ends[1]:+.3f}; nearer: {nearer:.0%})" if ends else ""
