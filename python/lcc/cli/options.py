"""What the commands share: options, exit codes and JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import DivergedError, InputError, LCCError, MemoryFileError, MismatchError, TargetError

# Exit codes that scripts can use; 2 is also the shell convention for wrong usage.
EXIT_CODES = {InputError: 2, MismatchError: 3, MemoryFileError: 4, DivergedError: 5, TargetError: 6}
INTERRUPTED = 130

ModelOption = Annotated[str | None, typer.Option(help="Model folder or hub name; the embedded model by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RatioOption = Annotated[float, typer.Option(help="Text tokens a buffer token.")]
StepsOption = Annotated[int | None, typer.Option(help="Optimiser steps at most.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random draw.")]
RecipeOption = Annotated[str, typer.Option(help="default, fast (110 steps, not 300), or paper (the paper's own).")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any field of CompileSettings, such as loss=mse; repeatable."),
]
QueriesOption = Annotated[str | None, typer.Option(help="General queries: a JSONL file or a datasets name.")]
MemoryArgument = Annotated[Path, typer.Argument(help="A memory file.", metavar="MEMORY")]


def reports_errors(command: Callable) -> Callable:
    """Turn this package's errors into one line on stderr and an exit code."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        console = Console(stderr=True, highlight=False)
        try:
            command(*args, **kwargs)
        except LCCError as error:
            console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)) from None
        except KeyboardInterrupt:
            console.print("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs as settings; values are JSON where they can be, else strings.

    Raises:
        InputError: a pair without ``=``.
    """
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair} has no value: write --set NAME=VALUE")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def print_json(value: dict) -> None:
    """Write ``value`` to stdout."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def require_writable(output: Path) -> None:
    """Fail before the work, not after it, when the result cannot be written.

    Raises:
        MemoryFileError: the folder is missing or read-only.
    """
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise MemoryFileError(f"cannot write to the folder {folder}: it is missing or read-only")
