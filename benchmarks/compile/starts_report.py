"""The table and the plot of ``benchmarks.compile.starts``, for ``benchmarks.report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.report_parts import head, line, where
from benchmarks.common.results_file import Row, load_rows

KIND = "starts"
FIRST_TOKENS = "first_tokens"
TITLES = ("ratio", "chain", "documents", "processor seconds", "KL", "worst KL", "right", "of the full text's")
PANELS = (("kl", "KL from the full text, nats a token"), ("kept", "right answers, of the full text's"))
NOTE = """Means over documents. Seconds leave out what the model asks itself, which `lcc` and `direct_kv` train on.
What a chain goes on from is in its seconds."""


def read(path: Path) -> list[Row]:
    """The rows, in the file's order."""
    return load_rows(path)


def markdown(name: str, rows: Sequence[Row]) -> str:
    """A line a ratio and chain."""
    lines = [f"## Starts ({name})\n", *head(TITLES)]
    for (ratio, chain), found in _groups(rows).items():
        mean = _means(found)
        cells = [f"{ratio:g}", chain, str(len(found)), f"{mean['seconds']:.1f}", f"{mean['kl']:.3f}"]
        cells += [f"{max(row['kl'] for row in found):.3f}", f"{mean['score']:.1%}", f"{mean['kept']:.1%}"]
        lines.append(line(cells))
    places = dict.fromkeys(where(row) for row in rows)
    return "\n".join([*lines, "", NOTE, "", *(f"- {place}" for place in places)]) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Save a PNG: what is kept against the seconds it takes, a row of panels a ratio, a point a chain."""
    ratios = sorted({row["ratio"] for row in rows})
    figure = Figure(figsize=(14, 4.2 * len(ratios)), layout="constrained")
    grid = figure.subplots(len(ratios), len(PANELS), squeeze=False)
    for ratio, panels in zip(ratios, grid, strict=True):
        means = {chain: _means(found) for (at, chain), found in _groups(rows).items() if at == ratio}
        for axes, (column, label) in zip(panels, PANELS, strict=True):
            _panel(axes, column, means)
            axes.set(xlabel="processor seconds", ylabel=label, title=f"{ratio:g}x")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside right upper")
    figure.savefig(path, dpi=110, format="png")


def _panel(axes: Axes, column: str, means: dict[str, dict[str, float]]) -> None:
    """A line for each compiler and start, over its numbers of steps; first tokens as a level."""
    lines: dict[str, list[str]] = {}
    for chain in means:
        if chain != FIRST_TOKENS:
            lines.setdefault(chain.rstrip("0123456789 "), []).append(chain)
    if FIRST_TOKENS in means:
        axes.axhline(means[FIRST_TOKENS][column], color="grey", linestyle=":", label=FIRST_TOKENS)
    for number, (name, chains) in enumerate(lines.items()):
        seconds, values = ([means[chain][figure] for chain in chains] for figure in ("seconds", column))
        marker = "s" if ">" in name else "o"
        axes.plot(seconds, values, marker=marker, color=colormaps["tab20"](number % 20), label=name)
    axes.set_xscale("log")
    if column == "kl":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _groups(rows: Sequence[Row]) -> dict[tuple[float, str], list[Row]]:
    """By ratio and chain, in the rows' order."""
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["ratio"]):
        groups.setdefault((row["ratio"], row["chain"]), []).append(row)
    return groups


def _means(rows: Sequence[Row]) -> dict[str, float]:
    mean = {name: fmean(row[name] for row in rows) for name in ("seconds", "kl", "score", "full_text")}
    return mean | {"kept": mean["score"] / mean["full_text"] if mean["full_text"] else 0.0}
