"""Turn pytest-benchmark JSON, or one run of another benchmark, into Markdown and a plot.

A results file says its kind (see ``REPORTS``); pytest-benchmark JSON is what has none.

    python -m benchmarks.report bottleneck.json [linear_kl.json ...] [-o DIR]
    python -m benchmarks.report benchmarks/results/fidelity/fidelity.json -o docs/fidelity/table
    python -m benchmarks.report benchmarks/results/fidelity/ablations.json -o docs/fidelity/ablations
    python -m benchmarks.report benchmarks/results/real/stories.json -o docs/real/table
    python -m benchmarks.report DIR -o PAGE

writes DIR/report.md and DIR/report.png. A file is a run; figures of different runs are never compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from math import floor, log10
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from benchmarks.ablations import report as ablations_report
from benchmarks.common.report_parts import head, line, where
from benchmarks.common.results_file import load_details
from benchmarks.compile import starts_report
from benchmarks.fidelity import report as fidelity_report
from benchmarks.gpu import report as gpu_report
from benchmarks.real import report as real_report

WHERE = ("device", "driver", "torch", "triton", "transformers", "commit", "date")
THROUGHPUTS = ("active_tflops", "three_gemm_tflops")
# By the kind that a results file says of itself.
REPORTS = {
    report.KIND: report for report in (ablations_report, fidelity_report, gpu_report, real_report, starts_report)
}
REMEDY = "make one with: pytest benchmarks/kernels/test_bottleneck.py --benchmark-only --benchmark-json=FILE.json"


@dataclass(frozen=True)
class Row:
    """One peer's figures for one case; what was not measured is None.

    ``seconds`` are the device's where they were measured apart from the host's, medians of the call otherwise.
    """

    run: str
    op: str
    direction: str
    case: str
    peer: str
    seconds: float
    peak_bytes: int | None
    tflops: float | None
    where: str


def read(path: Path) -> list[Row]:
    """The rows of one run, in the file's order; benchmarks that name no peer are left out.

    Raises:
        ValueError: the file is missing, not pytest-benchmark JSON, or has no benchmark with an op, a case and a peer.
    """
    try:
        benchmarks = json.loads(path.read_text("utf-8"))["benchmarks"]
        named = [benchmark for benchmark in benchmarks if {"op", "case", "peer"} <= benchmark["extra_info"].keys()]
        rows = [_row(path.stem, benchmark) for benchmark in named]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {REMEDY}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not pytest-benchmark JSON ({error!r}): {REMEDY}") from error
    if not rows:
        raise ValueError(f"{path} has no benchmark with an op, a case and a peer in extra_info: {REMEDY}")
    return rows


def _row(run: str, benchmark: dict[str, Any]) -> Row:
    info = benchmark["extra_info"]
    return Row(
        run,
        info["op"],
        info.get("direction", "fwd+bwd"),
        info["case"],
        info["peer"],
        float(info.get("device_seconds", benchmark["stats"]["median"])),
        info.get("peak_bytes"),
        next((info[name] for name in THROUGHPUTS if name in info), None),
        where(info, WHERE),
    )


def markdown(rows: list[Row]) -> str:
    """A table for each run and op; under "vs peer", how many times faster a row is than that peer on the same case."""
    return "\n\n".join(_table(*group) for group in _grouped(rows, lambda row: (row.run, row.op))) + "\n"


def _table(key: tuple[str, ...], rows: list[Row]) -> str:
    run, op = key
    peers = list(dict.fromkeys(row.peer for row in rows))
    seconds = {(row.case, row.direction, row.peer): row.seconds for row in rows}
    titles = ["case", "direction", "peer", "median ms", "peak MiB", "TFLOP/s"]
    titles += [*(f"vs {peer}" for peer in peers), "where"]
    lines = [f"## {op} ({run})\n", *head(titles)]
    alike = list(dict.fromkeys((row.case, row.direction) for row in rows))
    for row in sorted(rows, key=lambda row: alike.index((row.case, row.direction))):
        others = (seconds.get((row.case, row.direction, peer)) for peer in peers)
        lines.append(
            line(
                [row.case, row.direction, row.peer, _cell(row.seconds * 1e3)]
                + [_cell(row.peak_bytes and row.peak_bytes / 2**20), _cell(row.tflops)]
                + [_cell(other and other / row.seconds) for other in others]
                + [row.where]
            )
        )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def plot(rows: list[Row], path: Path) -> None:
    """Save a PNG: median milliseconds by case and peer, a panel for each run, op and direction."""
    panels = _grouped(rows, lambda row: (row.run, row.op, row.direction))
    figure = Figure(figsize=(9, 3.5 * len(panels)), layout="constrained")
    colours = {peer: f"C{number}" for number, peer in enumerate(dict.fromkeys(row.peer for row in rows))}
    for axes, (key, members) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for (peer,), points in _grouped(members, lambda row: (row.peer,)):
            times = [row.seconds * 1e3 for row in points]
            axes.plot([row.case for row in points], times, "o", color=colours[peer], label=peer)
        axes.set(title=" · ".join(key), ylabel="median ms", yscale="log", ylim=_decades(members))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", which="both", alpha=0.3)
        axes.tick_params("x", rotation=30)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, format="png")


def _decades(rows: list[Row]) -> tuple[float, float]:
    """The powers of ten around the milliseconds of ``rows``."""
    powers = [log10(row.seconds * 1e3) for row in rows]
    return 10.0 ** floor(min(powers)), 10.0 ** (floor(max(powers)) + 1)


def _grouped(rows: list[Row], key: Callable[[Row], tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[Row]]]:
    return [(name, list(members)) for name, members in groupby(sorted(rows, key=key), key)]


def _report_of(path: Path) -> ModuleType | None:
    """What reports a file, or a GPU run's folder, alone; None for pytest-benchmark's, and for what cannot be read."""
    path = path / gpu_report.FILE if path.is_dir() else path
    try:
        return REPORTS.get(load_details(path).get("kind"))
    except (OSError, ValueError, AttributeError):
        return None


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE.json", type=Path, nargs="+")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path())
    options = parser.parse_args(arguments)
    alone = {file: report for file in options.files if (report := _report_of(file))}
    if alone and len(options.files) > 1:
        parser.error(f"{next(iter(alone))} holds a run that is reported alone: name it by itself")
    options.output.mkdir(parents=True, exist_ok=True)
    image = options.output / "report.png"
    if alone:
        file, report = next(iter(alone.items()))
        rows = report.read(file)
        table = report.markdown(file.stem, rows)
        report.plot(rows, image)
    else:
        try:
            rows = [row for file in options.files for row in read(file)]
        except ValueError as error:
            parser.error(str(error))
        table = markdown(rows)
        plot(rows, image)
    (options.output / "report.md").write_text(table, "utf-8")
    print(table)


if __name__ == "__main__":
    main()
