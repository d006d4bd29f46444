"""Tables of a bank, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..bank.index import Document
from ..utils.terminal import Terminal, shown

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
