"""The findings, tables and plots of ``benchmarks.ablations``, for ``benchmarks.report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.report_parts import error_bars, head, header, line, share
from benchmarks.common.results_file import Row, load_rows

MARGIN, FLOOR = 0.05, 0.1
KIND = "ablations"
# The paper's axes; the other ablations are bars.
AXES = {
    "ratio": {"label": "ratio", "scale": {"value": "log", "base": 2}},
    "general": {"label": "general queries", "scale": {"value": "symlog", "linthresh": 250}},
    "reconstruction": {"label": "reconstructions", "scale": {"value": "linear"}},
}
MEASURES = {
    "qa": ("qa_kept", "interval", "questions", "-", 1.0),
    "general": ("general_kept", "general_interval", "general queries", "--", 0.55),
    "repeats": ("repeats", "repeats_interval", "text repeated", ":", 0.25),
}
TITLES = ("streams", "value", "questions kept", "from the base", "general kept", "from the base", "repeated", "seconds")


@dataclass(frozen=True)
class Finding:
    """What the paper says about a value of an ablation, as a claim that a row can bear out.

    Attributes:
        claim: ``worse`` or ``better`` than the base, the ``same`` as it, or ``near zero``.
        measure: ``qa`` or ``general``.
        streams: which it is about.
    """

    source: str
    text: str
    ablation: str
    value: int | str
    claim: str
    measure: str = "qa"
    streams: tuple[str, ...] = ("three streams", "two streams")


FINDINGS = (
    Finding("Figure 2", "without general queries, hardly an answer about the text", "general", 0, "near zero"),
    Finding("Figure 2", "without general queries, fewer answers about the text", "general", 0, "worse"),
    Finding("Section 3.4", "without general queries, general ability collapses", "general", 0, "worse", "general"),
    Finding("Figure 2", "8,000 general queries beat 2,000", "general", 8000, "better"),
    Finding("Figure 3", "at 2,000 general queries, no reconstruction beats 2,000", "reconstruction", 0, "better"),
    Finding(
        "Figure 3",
        "at 8,000 general queries, no reconstruction is worse than 2,000",
        "reconstruction",
        0,
        "worse",
        streams=("two streams, 8,000 queries",),
    ),
    Finding("Figure 4", "ratio 2 keeps what 16 keeps", "ratio", 2, "same"),
    Finding("Figure 4", "ratio 4 keeps what 16 keeps", "ratio", 4, "same"),
    Finding("Figure 4", "ratio 8 keeps what 16 keeps", "ratio", 8, "same"),
    Finding("Figure 4", "ratio 32 keeps less than 16", "ratio", 32, "worse"),
    Finding("Table 3", "the LoRA on for queries too: fewer answers about the text", "coupled", "on", "worse"),
    Finding("Table 3", "the LoRA on for queries too: less general ability", "coupled", "on", "worse", "general"),
    Finding("Table 3", "the same with the LoRA dropped: hardly an answer", "coupled", "on, dropped", "near zero"),
    Finding("Figure 5", "MSE over logits is worse than KL", "loss", "mse", "worse"),
)
NOTE = f"""Kept: score / full-text score, over tasks that the full text settles. Repeated: share of the text's tokens
predicted right after the request to repeat it, teacher-forced. Bars are questions, general queries and text repeated,
from dark to light, with 95 % intervals. All points are trained for the same steps; a stream weighs as much as the
paper's number of its samples would (2,000 are 1). Seconds are of a training, by the wall clock of a shared machine.

Differences are of scores, value minus base, paired, with 95 % intervals over documents and questions; one
without width is widened by 3 / questions (the rule of three). *Worse* or *better*: confirmed where the interval is
beyond zero, refuted where it excludes a difference of {MARGIN:.0%} in the claimed direction. *Same*: confirmed within
{MARGIN:.0%} either way, refuted beyond it. *Hardly an answer*: confirmed where the interval of what is kept is below
{FLOOR:.0%}, refuted above it. Everything else is open, and so is every claim of a loss where the base itself keeps less
than {FLOOR:.0%}, and of a gain that the interval leaves room for where the base has less than {MARGIN:.0%} to gain."""


def read(path: Path) -> list[Row]:
    """The rows, in the file's order."""
    return load_rows(path)


def verdict(finding: Finding, row: Row, base: Row) -> str:
    """``confirmed``, ``refuted`` or ``open``, by the rule of the report."""
    kept = base[MEASURES[finding.measure][0]]
    if finding.claim != "better" and kept < FLOOR:
        return "open: the base keeps next to nothing"
    if finding.claim == "near zero":
        low, high = _bounds(row, finding.measure)
        return _decide(high < FLOOR, low >= FLOOR)
    low, high = _difference(row, finding.measure)
    if finding.claim == "same":
        return _decide(low > -MARGIN and high < MARGIN, high < -MARGIN or low > MARGIN)
    if finding.claim == "better":
        if low <= 0 < high and kept > 1 - MARGIN:
            return "open: the base has next to nothing to gain"
        return _decide(low > 0, high < MARGIN)
    return _decide(high < 0, low > -MARGIN)


def _decide(confirmed: bool, refuted: bool) -> str:
    return "confirmed" if confirmed else "refuted" if refuted else "open"


def _bounds(row: Row, measure: str) -> tuple[float, float]:
    """The interval of what is kept."""
    value, interval = MEASURES[measure][:2]
    low, high = row[interval] or (row[value], row[value])
    return low, high


def _difference(row: Row, measure: str) -> tuple[float, float]:
    low, high = row[f"{measure}_difference"]
    if low == high:
        unseen = 3 / row["questions" if measure == "qa" else "general_questions"]
        return low - unseen, high + unseen
    return low, high


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The findings with their verdicts, and a table for each ablation."""
    lines = [f"## Ablations ({name})\n", *_headers(rows), ""]
    lines += head(("the paper", "streams", "base", "value", "difference", "verdict"))
    lines += [_finding(finding, *pair) for finding in FINDINGS for pair in _pairs(finding, rows)]
    lines += ["", NOTE]
    for ablation in dict.fromkeys(row["ablation"] for row in rows):
        lines += ["", f"### {ablation}\n", *head(TITLES)]
        lines += [line(_cells(row)) for row in rows if row["ablation"] == ablation]
    return "\n".join(lines) + "\n"


def _headers(rows: Sequence[Row]) -> list[str]:
    """A line for each run that rows come from, with the ablations that it measured."""
    repeated = "the text is repeated to {full_text:.1%} with the full text and {no_text:.1%} with none"
    runs: dict[str, list[str]] = {}
    for row in rows:
        said = header(row, repeated.format(**row["repeats_bounds"]))
        runs.setdefault(said, []).append(f"{row['ablation']} ({row['streams']})")
    return [f"- {', '.join(dict.fromkeys(measured))}: {said}" for said, measured in runs.items()]


def _pairs(finding: Finding, rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The rows that the finding is about, each with its base."""
    alike = [row for row in rows if row["ablation"] == finding.ablation and row["streams"] in finding.streams]
    bases = {row["streams"]: row for row in alike if row["base"]}
    return [(row, bases[row["streams"]]) for row in alike if row["value"] == finding.value and row["streams"] in bases]


def _finding(finding: Finding, row: Row, base: Row) -> str:
    value, interval = MEASURES[finding.measure][:2]
    return line(
        (
            f"{finding.source}: {finding.text}",
            row["streams"],
            share(base[value], base[interval]),
            share(row[value], row[interval]),
            _change(row, finding.measure),
            verdict(finding, row, base),
        )
    )


def _cells(row: Row) -> list[str]:
    return [
        row["streams"],
        f"{row['value']:,}" if isinstance(row["value"], int) else row["value"],
        share(row["qa_kept"], row["interval"]),
        "the base" if row["base"] else _change(row, "qa"),
        share(row["general_kept"], row["general_interval"]),
        "the base" if row["base"] else _change(row, "general"),
        share(row["repeats"], row["repeats_interval"]),
        f"{row['seconds']:.0f}",
    ]


def _change(row: Row, measure: str) -> str:
    return "{:+.1%} to {:+.1%}".format(*row[f"{measure}_difference"])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Save a PNG: a panel for each ablation, lines over the paper's axes and bars for the rest, with intervals."""
    ablations = list(dict.fromkeys(row["ablation"] for row in rows))
    streams = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row["streams"] for row in rows))}
    columns = min(3, len(ablations))
    height = -(-len(ablations) // columns)
    figure = Figure(figsize=(5 * columns, 1 + 3.2 * height), layout="constrained")
    panels = list(figure.subplots(height, columns, squeeze=False).flat)
    for axes, ablation in zip(panels, ablations, strict=False):
        of_ablation = [row for row in rows if row["ablation"] == ablation]
        (_curves if ablation in AXES else _bars)(axes, ablation, of_ablation, streams)
        axes.set(title=ablation, ylim=(-4, 108), ylabel="kept or repeated, %")
        axes.grid(axis="y", alpha=0.3)
    for axes in panels[len(ablations) :]:
        axes.remove()
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110, format="png")


def _curves(axes: Axes, ablation: str, rows: Sequence[Row], streams: dict[str, str]) -> None:
    for name, colour in streams.items():
        chosen = sorted((row for row in rows if row["streams"] == name), key=lambda row: row["value"])
        for value, interval, label, style, _ in MEASURES.values():
            if chosen:
                points, errors = error_bars(chosen, value, interval)
                axes.errorbar(
                    [row["value"] for row in chosen], points, yerr=errors, label=f"{name}: {label}",
                    linestyle=style, color=colour, marker="o", markersize=3, capsize=2,
                )  # fmt: skip
    axes.set_xscale(**AXES[ablation]["scale"])
    ticks = sorted({row["value"] for row in rows})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel(AXES[ablation]["label"])


def _bars(axes: Axes, _: str, rows: Sequence[Row], streams: dict[str, str]) -> None:
    values = list(dict.fromkeys(row["value"] for row in rows))
    shown = [name for name in streams if any(row["streams"] == name for row in rows)]
    width = 0.8 / (len(shown) * len(MEASURES))
    for number, (name, (value, interval, _label, _, alpha)) in enumerate(
        (name, measure) for name in shown for measure in MEASURES.values()
    ):
        chosen = [row for row in rows if row["streams"] == name]
        places = [values.index(row["value"]) + width * (number + 0.5) - 0.4 for row in chosen]
        points, errors = error_bars(chosen, value, interval)
        axes.bar(places, points, width, yerr=errors, color=streams[name], alpha=alpha, capsize=2)
    axes.set_xticks(range(len(values)), [str(value) for value in values])
