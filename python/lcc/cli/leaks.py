"""``lcc leaks``: what of a text can be got out of its memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ..utils.progress import Reporter
from ..utils.utf8 import read_file
from ..utils.values import require
from .options import JsonOption, LogFileOption, MemoryArgument, ModelOption, SeedOption, passages, print_json

PASSAGE = "PASSAGE|FILE"


def leaks_command(
    memory: MemoryArgument,
    text: Annotated[
        list[Path],
        typer.Option(
            help="The text that it was compiled from; - is standard input. Of a memory that took more texts in, name "
            "all, the oldest first.",
            metavar="FILE",
            allow_dash=True,
        ),
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
    from .leak_table import show_leaks
    from .loading import load_model
    from .rewriting import OwnFile

    require(max_recited is None or 0 <= max_recited <= 1, "--max-recited", max_recited, "a share, from 0 to 1")
    file, texts = OwnFile(memory), list(map(read_file, text))
    if write:
        file.check()
    with Reporter(log_file=log_file) as reporter:
        report = leaks(
            *load_model(model), file.memory, texts, marks=passages(mark), canaries=canary or (),
            redacted=passages(redacted), attempts=attempts, run=run, seed=seed, progress=reporter,
        )  # fmt: skip
    dropped = write and file.write(replace(file.memory, leaks=report.to_dict()), quiet=as_json)
    if as_json:
        print_json({"path": str(memory), "signature_dropped": dropped} | report.to_dict())
    else:
        show_leaks(report.to_dict(), canary or [])
    report.require_at_most(math.inf if max_recited is None else max_recited)
