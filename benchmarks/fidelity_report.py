"""The table and the plot of a fidelity run, for ``benchmarks.report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TITLES = ("ratio", "method", "questions kept", "other wordings", "general kept", "bytes held", "seconds", "options")
PANELS = (("qa_kept", "interval", "questions about the text"), ("general_kept", "general_interval", "general queries"))
WHERE = ("device", "torch", "transformers", "commit", "date")
NEEDED = {"method", "ratio", "qa_kept", "general_kept", "kv_bytes", "seconds", "interval"}
NOTE = (
    "Kept: score / full-text score, with 95 % intervals over documents and questions. Other wordings: the score on "
    "questions that the method did not ask itself. Bytes: of the K and V that a question finds, the chat's prefix "
    "included, and of any LoRA. Seconds: of the methods that are trained, those of the optimisation."
)
Row = dict[str, Any]


def is_fidelity(path: Path) -> bool:
    """Whether the file holds rows of ``benchmarks.fidelity``."""
    try:
        rows = json.loads(path.read_text("utf-8"))["rows"]
        return bool(rows) and all(row.keys() >= NEEDED for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read(path: Path) -> list[Row]:
    """The rows: best on the questions first within a ratio, methods without a ratio last."""
    rows = json.loads(path.read_text("utf-8"))["rows"]
    return sorted(rows, key=lambda row: (row["ratio"] is None, row["ratio"] or 0, -(row["qa_kept"] or 0)))


def markdown(name: str, rows: Sequence[Row]) -> str:
    """A line a row; kept is score / full-text score with its 95 % interval, medians of bytes and seconds a document."""
    first = rows[0]
    where = ", ".join(f"{key} {first[key]}" for key in WHERE if key in first)
    asked = f"{first['documents']} documents, {first['questions']} questions, {first['general_questions']} general"
    lines = [f"## Fidelity ({name})\n", f"{asked}; {where}.\n", _line(TITLES), _line(["---"] * len(TITLES))]
    lines += [_line(_cells(row)) for row in rows]
    sources = {row["method"]: row["source"] for row in rows if "source" in row}
    lines += ["", NOTE, "", *(f"- `{method}`: {source}" for method, source in sources.items())]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    ratio = "" if row["ratio"] is None else f"{row['ratio']:g}"
    return [
        ratio,
        row["method"],
        _kept(row["qa_kept"], row["interval"]),
        _other_wordings(row),
        _kept(row["general_kept"], row["general_interval"]),
        f"{row['kv_bytes']:.0f}",
        f"{row['seconds']:.3g}",
        _options(row),
    ]


def _kept(share: float | None, interval: Sequence[float] | None) -> str:
    if share is None:
        return ""
    return f"{share:.1%}" + (f" ({interval[0]:.1%}-{interval[1]:.1%})" if interval else "")


def _other_wordings(row: Row) -> str:
    score = row["other_wordings"]
    return "" if score is None else f"{score:.1%} of {row['other_wordings_count']}"


def _options(row: Row) -> str:
    if "options" not in row:
        return ""
    told = ", ".join(f"{name} {value}" for name, value in row["options"].items())
    return told + ("" if row["searched"] or not told else " (not searched)")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Save a PNG: what each method keeps, with intervals, a panel for the questions and one for general queries."""
    methods = list(dict.fromkeys(row["method"] for row in rows))[::-1]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    ratios = [name for name in groups if name.startswith("ratio")]
    figure = Figure(figsize=(11, 1.5 + 0.38 * len(methods)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (value, interval, title) in zip(panels, PANELS, strict=True):
        for number, (name, mine) in enumerate(groups.items()):
            drawn = [row for row in mine if row[value] is not None]
            # A method's points at several ratios stand one above the other.
            shift = 0.5 * ((ratios.index(name) + 0.5) / len(ratios) - 0.5) if name in ratios else 0.0
            _draw(axes, drawn, [methods.index(row["method"]) + shift for row in drawn], value, interval, f"C{number}")
        axes.set(title=title, xlabel="kept, % of the full text's score", xlim=(-4, 108))
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(panels[0].containers, list(groups), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120, format="png")


def _group(row: Row) -> str:
    if row["method"] in ("full_text", "no_text"):
        return "bounds"
    return "no K and V of the text" if row["ratio"] is None else f"ratio {row['ratio']:g}"


def _draw(axes: Axes, rows: Sequence[Row], heights: Sequence[float], value: str, interval: str, colour: str) -> None:
    kept = [100 * row[value] for row in rows]
    ends = [[100 * end for end in row[interval] or (row[value], row[value])] for row in rows]
    # A ratio's interval may leave out the point itself where few documents were drawn.
    below = [max(0.0, point - low) for point, (low, _) in zip(kept, ends, strict=True)]
    above = [max(0.0, high - point) for point, (_, high) in zip(kept, ends, strict=True)]
    axes.errorbar(kept, heights, xerr=[below, above], fmt="o", color=colour, capsize=2, markersize=4)
