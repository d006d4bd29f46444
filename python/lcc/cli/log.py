"""``lcc log``: what a memory was made of, and what made that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..utils.terminal import Terminal, shown
from .options import JsonOption, MemoryArgument, print_json

if TYPE_CHECKING:
    from ..memory.lineage import Ancestor
    from ..memory.memory import Memory

# Digits of a digest that people are shown.
DIGITS = 12


def log_command(memory: MemoryArgument, as_json: JsonOption = False) -> None:
    """Show a memory's history, the newest first: each operation, and what it was given that its parents were not."""
    from ..memory.memory import Memory

    rows = list(history(Memory.load(memory)))
    if as_json:
        print_json({"path": str(memory), "history": rows})
        return
    table = Table(title=shown(memory))
    for heading in ("operation", "tensors", "made of", "K", "compiler", "version", "changed settings"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "tensors")
    for row in rows:
        parents = ", ".join(shown(parent[:DIGITS]) for parent in row["parents"])
        changed = ", ".join(_told(name, *values) for name, values in row["changed"].items())
        said = (row["buffer_tokens"], row["compiler"]["name"], row["version"])
        rest = ("-" if value is None else shown(value) for value in said)
        table.add_row(shown(row["operation"]), shown(row["digest"][:DIGITS]), parents or "the text", *rest, changed)
    Terminal().print(table)


def _told(name: str, was: Any, now: Any) -> str:
    was, now = (round(value, 3) if isinstance(value, float) else value for value in (was, now))
    return shown(f"{name} {now}" if was is None else f"{name} {was} → {now}")


def history(memory: Memory) -> Iterator[dict[str, Any]]:
    """The memory and its ancestors as their records say, each with the settings that ``changed``: [before, now].

    Settings are compared with those of the first parent.
    """
    line = memory.with_ancestors()
    by_digest = {ancestor["digest"]: ancestor for ancestor in memory.lineage}
    for ancestor in line:
        parents = [by_digest[digest] for digest in ancestor["parents"]]
        yield {**ancestor, "changed": _changed(ancestor, parents[0]) if parents else {}}


def _changed(ancestor: Ancestor, parent: Ancestor) -> dict[str, tuple[Any, Any]]:
    now, before = ancestor["settings"], parent["settings"]
    if now is None or before is None:
        return {}
    return {name: (before.get(name), value) for name, value in now.items() if before.get(name) != value}
