"""What the commands share: options, settings and JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..compilers.registry import DEFAULT
from ..errors import InputError
from ..pipeline.settings import AUTO, known_settings, require_setting
from ..utils.safe_json import finite_json
from ..utils.utf8 import check_arguments, read_file
from ..utils.values import parse


class Command(TyperCommand):
    """A command whose texts are UTF-8."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            InputError: a text among its arguments is not UTF-8.
        """
        check_arguments(ctx.params)
        return super().invoke(ctx)


def _parse_ratio(given: str) -> float | str:
    """A number, or ``auto``."""
    if str(given) == AUTO:
        return AUTO
    try:
        return float(given)
    except ValueError:
        raise typer.BadParameter(f"{given!r} is neither a number nor {AUTO}") from None


ModelOption = Annotated[
    str | None, typer.Option(help="Model folder, GGUF file or hub name; the embedded model by default.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RatioOption = Annotated[float, typer.Option(help="Text tokens a buffer token.")]
AutoRatioOption = Annotated[
    Any,
    typer.Option(
        parser=_parse_ratio, metavar="NUMBER|auto", help="Text tokens a buffer token; auto tries 32, 16, 8, 4, 2."
    ),
]
TargetOption = Annotated[
    float | None,
    typer.Option(help="With --ratio auto: share of the full text's score to keep, 0.98 by default."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Time to compile in, such as 90s, 10m or 2h: a memory to ask comes at once, better ones replace it.",
        metavar="TIME",
    ),
]
MaxBytesOption = Annotated[
    str | None,
    typer.Option(
        help="Bytes of the memory's file, such as 300kB, 1MB or 2MiB, in place of --ratio: they choose the ratio and "
        "the dtype.",
        metavar="SIZE",
    ),
]
QuestionsOption = Annotated[
    str | None,
    typer.Option(help="Questions to measure the memory on: JSONL with question, and where known answer."),
]
CertifyOption = Annotated[
    bool, typer.Option("--certify/--no-certify", help="Measure the memory beside the full text and nothing.")
]
StepsOption = Annotated[int | None, typer.Option(help="Optimiser steps at most.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random draw.")]
RecipeOption = Annotated[str, typer.Option(help="default, fast (110 small steps), or paper (the paper's own).")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Any setting, such as loss=mse; repeatable. A wrong name lists them."
    ),
]
CompilerOption = Annotated[
    str, typer.Option(help="lcc, direct_kv (trains K and V), or one that an installed package names.")
]
QueriesOption = Annotated[
    str | None, typer.Option(help="General queries: a JSONL file, a datasets name, or self: the model writes them.")
]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", metavar="PATH", help="Append plain lines of progress to this file.")
]
TrustedOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", help="A public key, as PEM; one of those must have signed. Repeatable.", metavar="PUBLIC.pem"
    ),
]
ForceOption = Annotated[bool, typer.Option(help="Replace a file that is there, whatever it is.")]
BankOption = Annotated[Path, typer.Option("--bank", help="The bank's folder.", metavar="FOLDER")]
RedactOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A passage to cut out before anything reads the text, inside words too, or a file of passages, an empty "
        "line between two; repeatable.",
        metavar="PASSAGE|FILE",
    ),
]
DEFAULT_BANK = Path("bank")
MemoryArgument = Annotated[Path, typer.Argument(help="A memory file.", metavar="MEMORY")]


def chosen_settings(
    context: typer.Context, pairs: list[str] | None, compiler: str = DEFAULT, **own: Any
) -> dict[str, Any]:
    """The settings of ``--set``, and those of ``own`` that have an option of their own.

    Args:
        context: of the command, whose options no pair may name unless they are settings.

    Raises:
        InputError: as ``parse_settings``, or a setting that is given in both ways with two values.
    """
    options = {str(parameter.name): parameter.opts[-1] for parameter in context.command.params}
    parsed = parse_settings(pairs or [], options, compiler)
    for name in parsed.keys() & own.keys():
        if is_given(context, name) and own[name] != parsed[name]:
            given = f"{options[name]} is {own[name]} and --set {name} is {parsed[name]}"
            raise InputError(f"{given}: leave one of them out")
    return own | parsed


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the command line names the option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def parse_settings(
    pairs: list[str], options: Mapping[str, str] = MappingProxyType({}), compiler: str = DEFAULT
) -> dict[str, Any]:
    """``NAME=VALUE`` pairs as settings, each value by the type of its field.

    Args:
        options: the command's own, by name.

    Raises:
        InputError: a pair without ``=``, the name of no setting, or a value of another type.
    """
    parsed, known = {}, known_settings(compiler) if pairs else {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair} has no value: write --set NAME=VALUE")
        if name in options and name not in known:
            raise InputError(f"{name} is no setting but an option of its own: give {options[name]}")
        require_setting(name, compiler)
        searched = name == "ratio" and value == AUTO
        parsed[name] = AUTO if searched else parse(name, value, known[name])
    return parsed


def passages(given: list[str] | None) -> list[str]:
    """Passages of a text: those of the files among ``given``, an empty line between two, and the others themselves.

    Raises:
        InputError: a file cannot be read, or holds none.
    """
    found: list[str] = []
    for each in given or []:
        if os.path.isfile(each):
            of_file = [part for part in re.split(r"\n\s*\n", read_file(each)) if part.strip()]
            if not of_file:
                raise InputError(f"{each} holds no passage")
            found += of_file
        elif os.path.exists(each):
            raise InputError(
                f"{each} is a folder or a device: name a file of passages, or write the passage differently"
            )
        else:
            found.append(each)
    return found


def print_json(value: dict) -> None:
    """Write ``value`` to stdout."""
    json.dump(finite_json(value), sys.stdout, indent=2)
    sys.stdout.write("\n")
