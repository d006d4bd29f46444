"""Peak memory of a packed step at several lengths of text, measured beside its estimate, with a plot.

    python -m benchmarks.compile.step_memory --contexts 256 512 1024 2048
        --out benchmarks/results/compile/step-memory-cpu.json

Three ways to run the same step: plain, with gradient checkpointing, and with the text encoded in chunks besides.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import lcc_kernels as lk
from benchmarks.common.environment import describe
from benchmarks.common.models import SHAPES
from benchmarks.common.results_file import write_rows
from benchmarks.common.timing import peak_bytes
from benchmarks.compile import step_speed
from lcc.training.step_memory import step_memory

WAYS = {
    "plain": {"gradient_checkpointing": False, "encode_chunk": 0},
    "checkpointing": {"gradient_checkpointing": True, "encode_chunk": 0},
    "chunks of 256": {"gradient_checkpointing": True, "encode_chunk": 256},
}


def measure(arguments: argparse.Namespace, context: int) -> list[dict]:
    """A row of results for each way at one length."""
    step = step_speed.parse(
        ["--model", arguments.model, "--context", str(context), "--batch", str(arguments.batch), "--ratio", "16"]
    )
    model = step_speed.load(step, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    rows = []
    with step_speed.prepare(model, step) as job:
        text, segments = job.memory.context, tuple(len(sample.input_ids) for sample in job.samples)
        layout = lk.BottleneckLayout(len(job.memory.prefix), len(text.context_ids), text.buffer, segments)
        for name, changes in WAYS.items():
            settings = job.settings.replace(**changes)
            estimate = step_memory(model, layout, settings.execution)
            step_speed.packed(replace(job, settings=settings))
            measured = peak_bytes(lambda: step_speed.packed(replace(job, settings=settings)), model.device.type)  # noqa: B023
            rows.append({
                "model": arguments.model,
                "way": name,
                "context": context,
                "rows": layout.total,
                "measured_bytes": measured,
                "estimated_bytes": estimate.total,
                "estimated_over_measured": round(estimate.total / measured, 3),
                **describe(),
            })  # fmt: skip
    return rows


def plot(rows: Sequence[dict], path: Path) -> None:
    """Bytes over length: measured as points and lines, estimated dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name in WAYS:
        chosen = [row for row in rows if row["way"] == name]
        lengths = [row["context"] for row in chosen]
        (line,) = axes.plot(lengths, [row["measured_bytes"] / 1e6 for row in chosen], "o-", label=f"{name}, measured")
        estimates = [row["estimated_bytes"] / 1e6 for row in chosen]
        axes.plot(lengths, estimates, "--", color=line.get_color(), label=f"{name}, estimated")
    axes.set_xlabel("tokens of text")
    axes.set_ylabel("peak of a step, MB")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    rows = [row for context in arguments.contexts for row in measure(arguments, context)]
    write_rows(arguments.out, rows)
    for row in rows:
        print(
            f"{row['context']:6} {row['way']:14} {row['measured_bytes'] / 1e6:8.1f} MB measured, "
            f"{row['estimated_bytes'] / 1e6:8.1f} estimated"
        )
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
