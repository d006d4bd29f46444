"""Tables of a bank, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..bank.index import Document
from ..bank.router_training import Trained
from ..utils.terminal import Terminal, shown
from .tables import percent

WAYS = {
    "oracle": "the right memory",
    "retrieved": "the nearest memory",
    "routed": "the routed memory",
    "gated": "the same, gated",
    "text": "the nearest text",
}
FIGURES = ("tokens", "buffer tokens", "KiB")


def show_documents(documents: Sequence[Document]) -> None:
    """What ``lcc bank list`` says."""
    table = Table()
    for heading in ("memory", *FIGURES, "compiler", "text", ""):
        table.add_column(heading, overflow="fold", justify="right" if heading in FIGURES else "left")
    for document in documents:
        table.add_row(shown(document.key), *_row(document))
    Terminal().print(table)


def _row(document: Document) -> list[str]:
    if document.status != "ok":
        return ["", "", "", "", "", f"[red]{document.status}[/red]: {shown(document.error or '')}"]
    size = f"{(document.tensor_bytes or 0) / 1024:.1f}"
    kept = "kept" if document.has_text else "not kept"
    return [str(document.source_tokens), str(document.buffer_tokens), size, shown(document.compiler or ""), kept, ""]


def show_trained(trained: Trained, path: Path) -> None:
    """What ``lcc bank train-router`` says."""
    routers = Table(title=f"routers on {trained.counts['held_out']} held-out questions")
    for heading in ("router", "right memory"):
        routers.add_column(heading, justify="left" if heading == "router" else "right")
    for name, share in trained.accuracy.items():
        taken = f"{name} (taken)" if name == trained.router.form else name
        routers.add_row(taken, percent(share))
    gates = Table(title="gates on held-out questions, the best in bold")
    for heading in ("gate", "threshold", "balanced", "kept", "refused: unrelated", "memory missing", "ROC area"):
        gates.add_column(heading, justify="left" if heading == "gate" else "right")
    for name, fitted in trained.gates.items():
        shares = (fitted.accuracy, fitted.kept, trained.refused[name]["unrelated"], trained.refused[name]["absent"])
        best = f"[bold]{name}[/bold]" if fitted is trained.best else name
        gates.add_row(best, f"{fitted.gate.threshold:.3g}", *map(percent, shares), f"{fitted.area:.3f}")
    terminal = Terminal()
    terminal.print(routers)
    terminal.print(gates)
    found = f"the retriever found the memory of {percent(trained.found)} of the questions"
    terminal.print(f"{found}; wrote {shown(path)}", soft_wrap=True)


def show_evaluation(measured: dict[str, Any]) -> None:
    """What ``lcc bank eval`` says."""
    found = ", ".join(f"{percent(share)} among the first {depth}" for depth, share in measured["found"].items())
    table = Table(title=f"{measured['questions']} questions about {measured['documents']} documents")
    for heading in ("answered from", measured["metric"], "of the right memory's", "right memory"):
        table.add_column(heading, justify="left" if heading == "answered from" else "right")
    for name, words in WAYS.items():
        if name in measured["answers"]:
            shares = (measured["answers"][name], measured["of_oracle"][name], measured["right_memory"].get(name))
            table.add_row(words, *map(percent, shares))
    beside = Table(title="questions of no document")
    for heading in ("", "count", "gate", "refused", "as the plain model"):
        beside.add_column(heading, justify="right" if heading == "count" else "left")
    for kind in ("unrelated", "unanswerable"):
        for way, state in (("routed", "open"), ("gated", "as it is")):
            if way in measured[kind]:
                shares = measured[kind][way]
                beside.add_row(kind, str(measured[kind]["count"]), state, *map(percent, shares.values()))
    terminal = Terminal()
    terminal.print(f"the right memory is found: {found}", soft_wrap=True)
    terminal.print(table)
    terminal.print(beside)
