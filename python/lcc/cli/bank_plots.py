"""Plots of a bank's gates."""

from __future__ import annotations

from pathlib import Path

from ..bank.router_training import Trained
from ..errors import InputError
from ..utils.outputs import Output, replacing

NAMES = {"answered": "a memory answers", "unrelated": "unrelated", "absent": "the memory is missing"}
COLOURS = {"answered": "#1b7f4d", "unrelated": "#c0392b", "absent": "#7f8c8d"}
BINS = 40


def plot_gates(trained: Trained, path: Path) -> None:
    """Histograms of each signal over the held-out questions, with the threshold; and the ROC of all gates.

    Raises:
        InputError: matplotlib is missing, or the file's suffix names no format.
        MemoryFileError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError("a plot is drawn with matplotlib: pip install 'lcc-kernels[bank]'") from error
    figure = Figure(figsize=(4 * (len(trained.gates) + 1), 3.4), layout="constrained")
    *panels, last = figure.subplots(1, len(trained.gates) + 1)
    for axes, (name, fitted) in zip(panels, trained.gates.items(), strict=True):
        for kind, values in trained.signals[name].items():
            axes.hist(values, BINS, density=True, alpha=0.55, label=NAMES[kind], color=COLOURS[kind])
        axes.axvline(fitted.gate.threshold, color="black", linewidth=1, linestyle="--")
        axes.set(title=name, xlabel="log odds" if name == "score" else "nats", yticks=[])
        last.plot(*zip(*fitted.roc, strict=True), label=f"{name} {fitted.area:.3f}")
    panels[0].legend(fontsize=7)
    last.set(title="ROC", xlabel="unrelated that are kept", ylabel="answered that are kept")
    last.legend(title="area", fontsize=7)
    with replacing(Output(path, force=True)) as file:
        try:
            figure.savefig(file, format=path.suffix.removeprefix(".") or "svg")
        except ValueError as error:
            raise InputError(f"cannot draw {path}: {error}") from error
