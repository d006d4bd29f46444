"""The table and the plot of ``benchmarks.two_streams``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.report_parts import head, line
from benchmarks.common.results_file import Row

SCORES = {
    "questions": "questions",
    "text in the answer's words": "questions, text in the answer's words",
    "in other words": "questions, text in other words",
    "fact not asked": "questions, fact not asked",
    "fact asked, new wording": "questions, fact asked, new wording",
    "question, sentence begun": "question, sentence begun",
    "repetition, sentence begun": "repetition, sentence begun",
    "continued": "continuation",
    "repeated": "repetition, values",
    "in another order": "repetition in another order, values",
    "moved": "repetition moved by some positions, values",
    "recited": "sentences recited",
    "asked after reciting": "questions after reciting",
    "general": "general",
}
TITLES = ("model", "parameters", "memory", "documents", *SCORES, "heads shared", "loss", "seconds")
ABILITIES = ("repeated", "in another order", "repetition, sentence begun", "question, sentence begun", "questions")
SHOWN = ("full text", "two streams", "in the layers that answer", "and sentences", "and questions, all facts")
SHARES = {
    0: "two streams",
    1 / 4: "and questions, 1/4 of the facts",
    1 / 2: "and questions, 1/2 of the facts",
    1: "and questions, all facts",
}
BELOW: dict[str, Any] = {"fontsize": "small", "loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "ncols": 3}
ASKED, NOT_ASKED = "fact asked, new wording", "fact not asked"


def means(rows: Iterable[Row]) -> list[Row]:
    """One row for each model and memory: the scores' means over documents."""
    averaged, groups = [], defaultdict(list)
    for row in rows:
        groups[row["model"], row["run"]].append(row)
    for group in groups.values():
        scores = {title: _mean(row["scores"][name] for row in group) for title, name in SCORES.items()}
        figures = {name: _mean(row.get(name) for row in group) for name in ("loss", "seconds")}
        shared = _mean(row.get("heads", {}).get("shared") for row in group)
        first = {name: group[0][name] for name in ("model", "mix", "run", "width", "layers", "parameters")}
        averaged.append({**first, "documents": len(group), "scores": scores, "shared": shared, **figures})
    return averaged


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def table(rows: Sequence[Row]) -> str:
    """A line for each model and memory: shares of right answers, means over documents."""
    lines = head(TITLES)
    for row in means(rows):
        cells = [row["model"], f"{row['parameters'] / 1e6:.2f} M", row["run"], str(row["documents"])]
        cells += [_cell(row["scores"][title], ".0%") for title in SCORES]
        lines.append(
            line([*cells, _cell(row["shared"], ".2f"), _cell(row["loss"], ".4f"), _cell(row["seconds"], ".0f")])
        )
    return "\n".join(lines) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """What the embedded model can do with each memory, what questions about a few facts do for the rest, all models."""
    embedded = means(row for row in rows if row["mix"] == "embedded")
    others = [row for row in rows if row["mix"] != "embedded"]
    widths = [5.5, 3.0] + [0.8 * len({row["model"] for row in others})] * bool(others)
    figure = Figure(figsize=(sum(widths) + 1, 4.5), layout="constrained")
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    _abilities(axes[0], [row for row in embedded if row["run"] in SHOWN])
    _shares(axes[1], {row["run"]: row["scores"] for row in embedded})
    if others:
        _models(axes[2], others)
    for panel in axes:
        panel.set_ylim(0, 1.05)
        panel.grid(axis="y", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _abilities(axes: Axes, rows: Sequence[Row]) -> None:
    for number, row in enumerate(rows):
        places = [place + 0.8 * number / len(rows) for place in range(len(ABILITIES))]
        axes.bar(
            places, [row["scores"][title] for title in ABILITIES], 0.8 / len(rows), align="edge", **_style(row["run"])
        )
    _name(axes, ABILITIES)
    axes.set(title="embedded model: values found")
    if rows:
        axes.legend(**BELOW)


def _shares(axes: Axes, scores: dict[str, dict[str, float | None]]) -> None:
    for title in (NOT_ASKED, ASKED):
        known = [(share, scores[run][title]) for share, run in SHARES.items() if run in scores]
        points = [(share, value) for share, value in known if value is not None]
        axes.plot([share for share, _ in points], [value for _, value in points], "o-", label=title)
    axes.set(title="questions", xlabel="share of the facts that compile asks about")
    axes.legend(**BELOW)


def _models(axes: Axes, rows: Sequence[Row]) -> None:
    """Answers kept of the full text's on the same documents, model by model."""
    right: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        right[row["model"], row["run"]][row["document"]] = row["scores"][SCORES["questions"]]
    names = [name for name, run in right if run == "full text"]
    runs = [run for run in SHOWN[1:] if any((name, run) in right for name in names)]
    for number, run in enumerate(runs):
        bars = {name: kept(right[name, run], right[name, "full text"]) for name in names if (name, run) in right}
        places = [place + 0.8 * number / len(runs) for place, name in enumerate(names) if name in bars]
        axes.bar(places, bars.values(), 0.8 / len(runs), align="edge", **_style(run))
    _name(axes, names)
    axes.set(title="questions kept, of the full text's")
    axes.legend(**BELOW)


def kept(memory: dict[int, float], text: dict[int, float]) -> float:
    """What a memory keeps of the text's scores; both are by document, and the memory's documents count."""
    return sum(memory.values()) / (sum(text[document] for document in memory) or 1)


def _style(run: str) -> dict[str, str]:
    """A memory's name, and its color in every panel."""
    return {"label": run, "color": f"C{SHOWN.index(run)}"}


def _name(axes: Axes, names: Sequence[str]) -> None:
    """Names under the groups of bars, a line a word, and one for a size."""
    lines = [name.replace(" x ", "\u00d7").replace(" ", "\n") for name in names]
    axes.set_xticks([place + 0.4 for place in range(len(names))], lines, fontsize="small")
