"""``lcc leaks``: what of a text can be got out of its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..errors import MemoryFileError
from ..utils.outputs import Output
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, shown
from ..utils.utf8 import read_file
from ..utils.values import require
from .options import JsonOption, LogFileOption, MemoryArgument, ModelOption, SeedOption, passages, print_json
from .tables import READERS, percent

ATTACKS = {"asked": "asked to repeat, greedily", "sampled": "{attempts} answers to each request"}
PASSAGE = "PASSAGE|FILE"


def leaks_command(
    memory: MemoryArgument,
    text: Annotated[
        Path,
        typer.Option(help="The text that it was compiled from; - is standard input.", metavar="FILE", allow_dash=True),
    ],
    mark: Annotated[
        list[str] | None,
        typer.Option(
            help="A passage that matters, or a file of passages, an empty line between two; repeatable.",
            metavar=PASSAGE,
        ),
    ] = None,
    canary: Annotated[
        list[str] | None,
        typer.Option(help="A string of the text that matters, such as a number; repeatable.", metavar="STRING"),
    ] = None,
    redacted: Annotated[
        list[str] | None,
        typer.Option(help="What lcc compile was given with --redact; repeatable.", metavar=PASSAGE),
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Answers that are drawn to each request.")] = 4,
    run: Annotated[int, typer.Option(min=1, help="Tokens in a row that count as recited.")] = 20,
    max_recited: Annotated[
        float | None, typer.Option(help="End with exit code 7 if a larger share is recited.", metavar="SHARE")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the figures into the memory's file.")] = False,
    seed: SeedOption = 0,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try to get a text out of its memory, and compare that with the text itself and with nothing."""
    from dataclasses import replace

    from ..evaluation.leaks import leaks
    from ..memory.memory import Memory
    from .loading import load_model

    require(max_recited is None or 0 <= max_recited <= 1, "--max-recited", max_recited, "a share, from 0 to 1")
    stored, document = Memory.load(memory), read_file(text)
    target = Output(memory, force=True)
    if write:
        target.check()
    with Reporter(log_file=log_file) as reporter:
        report = leaks(
            *load_model(model), stored, document, marks=passages(mark), canaries=canary or (),
            redacted=passages(redacted), attempts=attempts, run=run, seed=seed, progress=reporter,
        )  # fmt: skip
    if write:
        if Memory.load(memory).digest != stored.digest:
            raise MemoryFileError(f"{memory} was replaced meanwhile: run the command again")
        replace(stored, leaks=report.to_dict()).save(target)
    if as_json:
        print_json({"path": str(memory)} | report.to_dict())
    else:
        _show(report.to_dict(), canary or [])
    report.require_at_most(math.inf if max_recited is None else max_recited)


def _show(measured: dict[str, Any], canaries: list[str]) -> None:
    """The figures, a reader a column."""
    whose = "the redacted passages" if measured["redacted"] else "the text"
    title = f"what comes out of {measured['tokens']} tokens of {whose}, in runs of {measured['run']} or more"
    table = Table(title=title)
    for heading in ("", "full text", "memory", "nothing"):
        table.add_column(heading, justify="right" if heading else "left")
    for what, figures in _rows(measured, canaries):
        table.add_row(what, *(figures[name] for name in READERS))
    terminal = Terminal()
    terminal.print(table)
    terminal.print(f"recited: [bold]{percent(measured['recited'])}[/bold], the most that an attack got from the memory")


def _rows(measured: dict[str, Any], canaries: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
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


def _formatted(figures: dict[str, Any], form: Any) -> dict[str, str]:
    return {name: form(figure) for name, figure in figures.items()}
