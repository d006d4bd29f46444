"""The table and the plot of a fidelity run, for ``benchmarks.report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common.report_parts import error_bars, head, header, line, share
from benchmarks.common.results_file import Row, load_rows

TITLES = (
    "ratio", "method", "questions kept", "lcc ahead by", "other wordings", "general kept", "bytes held", "seconds",
    "options",
)  # fmt: skip
TASK_TITLES = ("ratio", "method")
PANELS = (("qa_kept", "interval", "questions about the text"), ("general_kept", "general_interval", "general queries"))
KIND = "fidelity"
NOTE = (
    "Kept: score / full-text score, with 95 % intervals over documents and questions. Lcc ahead by: its score minus "
    "the method's on these questions, paired. Other wordings: of these, the "
    "questions in wordings that the model is not taught to ask in, and did not ask itself. Bytes: of the K and V that "
    "a question finds, the chat's prefix included, and of any LoRA. Seconds: of the methods that are trained, those of "
    "the optimisation. Both are medians of a document."
)
BY_TASK = (
    "Kept, task by task; in the full text's row, its score. What the full text answers less than half of is in no "
    "headline figure."
)
# Of LCC, by ratio and column.
TARGETS = ((16, "qa_kept", 0.98), (16, "general_kept", 0.98), (16, "other_wordings", 0.95), (32, "qa_kept", 0.92))
COLUMNS = {"qa_kept": TITLES[2], "general_kept": TITLES[5], "other_wordings": TITLES[4]}


def read(path: Path) -> list[Row]:
    """The rows: best on the questions first within a ratio, methods without a ratio last."""
    return sorted(load_rows(path), key=lambda row: (row["ratio"] is None, row["ratio"] or 0, -(row["qa_kept"] or 0)))


def markdown(name: str, rows: Sequence[Row]) -> str:
    """Two tables with a line a row, what is kept in all and task by task, and where the methods come from."""
    lines = [f"## Fidelity ({name})\n", header(rows[0]) + "\n", *head(TITLES)]
    lines += [line(_cells(row)) for row in rows]
    lines += ["", NOTE, "", *_by_task(rows), "", *_targets(rows)]
    sources = {row["method"]: row["source"] for row in rows if "source" in row}
    lines += ["", *(f"- `{method}`: {source}" for method, source in sources.items())]
    return "\n".join(lines) + "\n"


def _by_task(rows: Sequence[Row]) -> list[str]:
    """What is kept of each task; nothing where the rows do not tell."""
    by_task = [row for row in rows if "tasks" in row]
    if not by_task:
        return []
    tasks = list(by_task[0]["tasks"])
    titles = [
        *TASK_TITLES,
        *(task if task in by_task[0]["headline"] else f"{task} (not in the headline)" for task in tasks),
    ]
    shares = [row["task_scores"] if row["method"] == "full_text" else row["tasks"] for row in by_task]
    lines = [
        line([*_cells(row)[:2], *(share(kept[task], None) for task in tasks)])
        for row, kept in zip(by_task, shares, strict=True)
    ]
    return [BY_TASK, "", *head(titles), *lines]


def _targets(rows: Sequence[Row]) -> list[str]:
    """How far LCC is from its targets, and from the best peer of the same ratio."""
    lines = []
    for ratio, column, target in TARGETS:
        kept = next((row[column] for row in rows if (row["method"], row["ratio"]) == ("lcc", ratio)), None)
        if kept is not None:
            verdict = "reached" if kept >= target else f"missed by {100 * (target - kept):.1f} points"
            lines.append(f"- lcc at ratio {ratio}, {COLUMNS[column]}: {kept:.1%}; target {target:.0%}: {verdict}")
    for ratio in sorted({row["ratio"] for row in rows if row["method"] == "lcc"}):
        ours, *peers = sorted(
            (row for row in rows if row["ratio"] == ratio and row["qa_kept"] is not None),
            key=lambda row: (row["method"] != "lcc", -row["qa_kept"]),
        )
        if peers:
            ahead = 100 * (ours["qa_kept"] - peers[0]["qa_kept"])
            best = f"{peers[0]['method']} ({peers[0]['qa_kept']:.1%})"
            lines.append(f"- lcc at ratio {ratio:g}: {ahead:+.1f} points of {TITLES[2]} over the best peer, {best}")
    return lines


def _cells(row: Row) -> list[str]:
    ratio = "" if row["ratio"] is None else f"{row['ratio']:g}"
    return [
        ratio,
        row["method"],
        share(row["qa_kept"], row["interval"]),
        share(row.get("lcc_ahead"), row.get("lcc_ahead_interval")),
        _other_wordings(row),
        share(row["general_kept"], row["general_interval"]),
        f"{row['kv_bytes']:.0f}",
        f"{row['seconds']:.3g}",
        _options(row),
    ]


def _other_wordings(row: Row) -> str:
    kept = share(row["other_wordings"], row.get("other_wordings_interval"))
    return kept and f"{kept} of {row['other_wordings_count']}"


def _options(row: Row) -> str:
    if "options" not in row:
        return ""
    options = ", ".join(f"{name} {value}" for name, value in row["options"].items())
    return options + ("" if row["searched"] or not options else " (not searched)")


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
        for number, (name, of_method) in enumerate(groups.items()):
            drawn = [row for row in of_method if row[value] is not None]
            # A method's points at several ratios stand one above the other.
            shift = 0.5 * ((ratios.index(name) + 0.5) / len(ratios) - 0.5) if name in ratios else 0.0
            heights = [methods.index(row["method"]) + shift for row in drawn]
            points, errors = error_bars(drawn, value, interval)
            axes.errorbar(points, heights, xerr=errors, fmt="o", color=f"C{number}", capsize=2, markersize=4)
        axes.set(title=title, xlabel="kept, % of the full text's score", xlim=(-4, 108))
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(axis="x", alpha=0.3)
    figure.legend(panels[0].containers, list(groups), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120, format="png")


def _group(row: Row) -> str:
    if row["method"] in ("full_text", "no_text"):
        return "bounds"
    return "no K and V of the text" if row["ratio"] is None else f"ratio {row['ratio']:g}"
