"""What ``lcc leaks`` shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ..utils.terminal import Terminal, shown
from .tables import READERS, percent

ATTACKS = {"asked": "asked to repeat, greedily", "sampled": "{attempts} answers to each request"}


def show_leaks(measured: dict[str, Any], canaries: list[str]) -> None:
    """The figures, a reader a column."""
    whose = "the redacted passages" if measured["redacted"] else "the text"
    title = f"what comes out of {measured['tokens']} tokens of {whose}, in runs of {measured['run']} or more"
    table = Table(title=title)
    for heading in ("", "full text", "memory", "nothing"):
        table.add_column(heading, justify="right" if heading else "left")
    for what, figures in _leak_rows(measured, canaries):
        table.add_row(what, *(figures[name] for name in READERS))
    terminal = Terminal()
    terminal.print(table)
    terminal.print(
        f"recited: [bold]{percent(measured['recited'])}[/bold], the most that came out of the memory in one way"
    )
    if measured["file"]["strings"]:
        terminal.print("the file holds questions and answers about the text: lcc strip writes one without")


def _leak_rows(measured: dict[str, Any], canaries: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    for name, attack in measured["attacks"].items():
        yield ATTACKS[name].format(**attack), _formatted(attack["recited"], percent)
        if attack["attempts"] > 1:
            yield "  in the best of them", _formatted(attack["best"], percent)
        yield "  longest run, tokens", _formatted(attack["longest"], str)
    for canary, figures in zip(canaries, measured["canaries"], strict=True):
        most = math.log2(figures["alternatives"] + 1)
        yield f"exposure of {shown(canary)}, bits of {most:.1f}", _formatted(figures["exposure"], "{:.1f}".format)
        yield "  written word for word", _formatted(figures["written"], lambda it: "yes" if it else "no")
    if told := measured["passages"]:
        yield f"passages ({told['count']}, {told['tokens']} tokens)", _formatted(told["recited"], percent)
        if told["same"]:
            yield f"  {told['questions']} questions answered as from the text", _formatted(told["same"], percent)
    said = measured["file"]
    yield f"the file's own words ({said['strings']} strings)", _of_memory(percent(said["recited"]))
    yield "  longest run, tokens", _of_memory(str(said["longest"]))
    for canary, found in zip(canaries, said["canaries"], strict=True):
        yield f"  {shown(canary)} is in them", _of_memory("yes" if found else "no")


def _of_memory(figure: str) -> dict[str, str]:
    """A figure that the memory alone has."""
    return dict.fromkeys(READERS, "") | {"memory": figure}


def _formatted(figures: dict[str, Any], form: Any) -> dict[str, str]:
    return {name: form(figure) for name, figure in figures.items()}
