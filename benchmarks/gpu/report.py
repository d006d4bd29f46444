"""The page of a run: what is wrong, a table a step, what was refused, and how near to the ceilings it came."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.common.report_parts import head, line, where
from benchmarks.common.results_file import Row, load_rows

from .rows import FILE, KIND, is_wrong

__all__ = ["KIND", "markdown", "plot", "read"]

WHERE = ("device", "driver", "torch", "triton", "transformers", "commit", "date")
UNSAID = {"step", "case", "refused", "failed", *WHERE}
# A column is shown by how its name ends: the unit, what a value is divided by, and how it is written.
UNITS: dict[str, tuple[str, float, str]] = {
    "bytes_per_second": ("GB/s", 1e9, ".4g"),
    "seconds_a_step": ("a step, ms", 1e-3, ".4g"),
    "seconds": ("ms", 1e-3, ".4g"),
    "bytes": ("MiB", 2**20, ".4g"),
    "tflops": ("TFLOP/s", 1, ".3g"),
    "share_of_copy": ("of a copy", 1, ".0%"),
}
NOTE = "Behind TFLOP/s stands the share of what the machine reached with the large product of the step `machine`."
BAR = 0.22  # inches


def read(path: Path) -> list[Row]:
    """The rows of a run, by its folder or its file."""
    return load_rows(path / FILE if path.is_dir() else path)


def markdown(name: str, rows: Sequence[Row]) -> str:
    """The page."""
    product = _ceiling(rows)
    parts = [f"# Ten minutes on a GPU ({name})", _verdict(rows), NOTE if product else ""]
    for step in dict.fromkeys(row["step"] for row in rows):
        measured = [row for row in rows if row["step"] == step and "refused" not in row and "failed" not in row]
        if measured:
            parts += [f"## {step}", *(_table(alike, product) for alike in _alike(measured))]
    parts += [_refused(rows), "\n".join(f"- {place}" for place in dict.fromkeys(where(row, WHERE) for row in rows))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if "passed" in row]
    wrong = list(filter(is_wrong, rows))
    said = f"{len(rows)} cases; {sum(row['passed'] for row in judged)} of {len(judged)} that were judged are right."
    lines = [f"- **{row['step']}: {row['case']}**: {row.get('failed') or 'wrong: see its row'}" for row in wrong]
    return "\n".join([said, *([""] if lines else []), *lines])


def _alike(rows: Sequence[Row]) -> Iterable[list[Row]]:
    """Rows that have the same columns, for a table of their own."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(_columns(row))].append(row)
    return groups.values()


def _columns(row: Row) -> list[str]:
    return [name for name, value in row.items() if name not in UNSAID and not isinstance(value, (dict, list))]


def _table(rows: Sequence[Row], product: float | None) -> str:
    columns = _columns(rows[0])
    lines = [line([row["case"], *(_cell(column, row[column], product) for column in columns)]) for row in rows]
    return "\n".join([*head(["case", *map(_title, columns)]), *lines])


def _title(column: str) -> str:
    ending = _ending(column)
    if ending is None:
        return column.replace("_", " ")
    return f"{column.removesuffix(ending).replace('_', ' ')}{UNITS[ending][0]}"


def _cell(column: str, value: object, product: float | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    ending = _ending(column)
    if ending is not None and isinstance(value, (int, float)):
        _, divisor, form = UNITS[ending]
        share = f" ({value / product:.0%})" if ending == "tflops" and product else ""
        return f"{value / divisor:{form}}{share}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _ending(column: str) -> str | None:
    return next((ending for ending in UNITS if column.endswith(ending)), None)


def _refused(rows: Sequence[Row]) -> str:
    counts = Counter(row["refused"] for row in rows if "refused" in row)
    if not counts:
        return ""
    return "\n".join(["## Not run\n", *(f"- {count} × {reason}" for reason, count in counts.most_common())])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Save a PNG: each case's share of what the machine copied, or multiplied, at most; a panel a step."""
    panels = {
        step: bars
        for step in dict.fromkeys(row["step"] for row in rows)
        if (bars := [bar for row in rows if row["step"] == step for bar in _shares(row, _ceiling(rows))])
    }
    heights = [len(bars) for bars in panels.values()] or [1]
    figure = Figure(figsize=(9, 1 + BAR * sum(heights) + len(heights)), layout="constrained")
    grid = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (step, bars) in zip(grid, panels.items(), strict=False):
        names, shares = zip(*bars, strict=True)
        percent = [100 * share for share in shares]
        axes.barh(range(len(bars)), percent)
        axes.set_yticks(range(len(bars)), names, fontsize=7)
        axes.invert_yaxis()
        axes.set(title=step, xlabel="% of the ceiling that was measured", xlim=(0, max(100.0, *percent)))
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110, format="png")


def _ceiling(rows: Sequence[Row]) -> float | None:
    """TFLOP/s of the large product."""
    return next((row["tflops"] for row in rows if (row["step"], row["case"]) == ("machine", "product")), None)


def _shares(row: Row, product: float | None) -> list[tuple[str, float]]:
    if row["step"] == "machine":
        return []
    shares = [(row["case"], row["share_of_copy"])] if "share_of_copy" in row else []
    if product:
        rates = {name: value for name, value in row.items() if name.endswith("tflops")}
        shares += [
            (f"{row['case']} {name.removesuffix('tflops')}".strip(" _"), rate / product) for name, rate in rates.items()
        ]
    return shares
