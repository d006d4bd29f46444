"""What reports are put together from: lines of Markdown, shares with their intervals, and a plot's error bars."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.common.results_file import Row

WHERE = ("device", "torch", "transformers", "commit", "date")


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def head(titles: Sequence[str]) -> list[str]:
    """The two lines that a table begins with."""
    return [line(titles), line(["---"] * len(titles))]


def where(row: dict[str, Any], names: Iterable[str] = WHERE) -> str:
    """Where a row was measured: what it has of ``names``, keys of ``benchmarks.common.environment.describe``."""
    return ", ".join(f"{name} {row[name]}" for name in names if name in row)


def header(first: Row, *more: str) -> str:
    """A sentence on what was asked, whatever ``more`` there is to say, and where, by a run's first row."""
    counts = f"{first['documents']} documents, {first['questions']} questions, {first['general_questions']} general"
    return "; ".join((counts, *more, where(first))) + "."


def share(value: float | None, interval: Sequence[float] | None) -> str:
    """A share in percent with its interval, if it has one; nothing for None."""
    if value is None:
        return ""
    return f"{value:.1%}" + (f" ({interval[0]:.1%}-{interval[1]:.1%})" if interval else "")


def error_bars(rows: Sequence[Row], value: str, interval: str) -> tuple[list[float], list[list[float]]]:
    """The column ``value`` in percent, 0 for None, and how far the column ``interval`` reaches below and above it."""
    points = [100 * (row[value] or 0.0) for row in rows]
    ends = [[100 * end for end in row[interval] or (row[value] or 0.0,) * 2] for row in rows]
    # A ratio's interval may leave out the point itself where few documents were drawn.
    below = [max(0.0, point - low) for point, (low, _) in zip(points, ends, strict=True)]
    above = [max(0.0, high - point) for point, (_, high) in zip(points, ends, strict=True)]
    return points, [below, above]
