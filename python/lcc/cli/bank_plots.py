"""Plots of a bank's gates."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ..bank.router_training import SIGNALS, Trained
from ..errors import InputError
from ..utils.outputs import Output, replacing

UNITS = {"entropy": "nats", "divergence": "nats", "likeness": "cosine", "score": "log odds"}
NAMES = {"answered": "a memory answers", "unrelated": "unrelated", "absent": "the memory is missing"}
COLOURS = {"answered": "#1b7f4d", "unrelated": "#c0392b", "absent": "#7f8c8d"}
BINS = 40
SUFFIXES = (".svg", ".png", ".pdf")


def check_plot(path: Path) -> None:
    """Refuse a plot that cannot be drawn, before what it shows is measured.

    Raises:
        InputError: matplotlib is missing, or the file's suffix names no format.
        MemoryFileError: the file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise InputError("a plot is drawn with matplotlib: pip install 'lcc-kernels[bank]'")
    if path.suffix not in SUFFIXES:
        raise InputError(f"cannot draw {path}: name a file that ends in {', '.join(SUFFIXES)}")
    Output(path, force=True).check()


def plot_gates(trained: Trained, path: Path) -> None:
    """Histograms of each signal over the held-out questions, with the threshold; and the ROC of all gates.

    Raises:
        InputError, MemoryFileError: as ``check_plot``.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    *panels, last, legend = figure.subplots(2, 3).flat
    for axes, signal in zip(panels, SIGNALS, strict=True):
        values = {kind: trained.signals[signal][kind] for kind in NAMES}
        every = [value for some in values.values() for value in some]
        for kind, some in values.items():
            shares = [1 / max(1, len(some))] * len(some)
            span = (min(every, default=0), max(every, default=1))
            axes.hist(some, BINS, range=span, weights=shares, alpha=0.55, label=NAMES[kind], color=COLOURS[kind])
        axes.axvline(
            trained.gates[signal].gate.threshold, color="black", linewidth=1, linestyle="--", label="threshold"
        )
        axes.set(title=signal, xlabel=UNITS[signal], ylabel="share of the questions")
    for name, fitted in trained.gates.items():
        last.plot(*zip(*fitted.roc, strict=True), label=f"{name}, area {fitted.area:.3f}")
    last.set(title="ROC", xlabel="unrelated that are kept", ylabel="answered that are kept")
    legend.axis("off")
    kinds = legend.legend(*panels[0].get_legend_handles_labels(), loc="upper center", frameon=False)
    legend.legend(*last.get_legend_handles_labels(), loc="lower center", frameon=False)
    legend.add_artist(kinds)
    with replacing(Output(path, force=True)) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))
