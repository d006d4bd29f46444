"""Commands, their options and their exit codes."""

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

from ..errors import DivergedError, InputError, LCCError, MemoryFileError, MismatchError

app = typer.Typer(
    help="Compile a long document once, ask it many times.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Exit codes that scripts can use; 2 is also the shell convention for wrong usage.
EXIT_CODES = {InputError: 2, MismatchError: 3, MemoryFileError: 4, DivergedError: 5}
INTERRUPTED = 130

ModelOption = Annotated[str | None, typer.Option(help="Model folder or hub name; the embedded model by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RatioOption = Annotated[float, typer.Option(help="Text tokens a buffer token.")]
StepsOption = Annotated[int | None, typer.Option(help="Optimiser steps at most.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random draw.")]
RecipeOption = Annotated[str, typer.Option(help="default, or paper: the paper's two streams alone.")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any field of CompileSettings, such as loss=mse; repeatable."),
]
QueriesOption = Annotated[str | None, typer.Option(help="General queries: a JSONL file or a datasets name.")]
MemoryArgument = Annotated[Path, typer.Argument(help="A memory file.", metavar="MEMORY")]


def main() -> None:
    """Entry point."""
    app()


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


@app.command()
@reports_errors
def demo(
    ratio: RatioOption = 8.0,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    recipe: RecipeOption = "default",
    settings: SettingsOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile an unseen document, throw its text away, and compare answers."""
    from ..demo import demo_document, run_demo
    from .load import load_model
    from .show import show_demo, show_document

    chosen = parse_settings(settings or [])
    if not as_json:
        show_document(demo_document(seed))
    report = run_demo(*load_model(model), seed=seed, ratio=ratio, steps=steps, recipe=recipe, **chosen)
    if as_json:
        _print_json(report.to_dict())
    else:
        show_demo(report)


@app.command("compile")
@reports_errors
def compile_command(
    text: Annotated[Path, typer.Argument(help="A UTF-8 text file, or - for standard input.", allow_dash=True)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The memory file to write.")],
    ratio: RatioOption = 16.0,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    recipe: RecipeOption = "default",
    queries: QueriesOption = None,
    settings: SettingsOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a text into a memory file. Run it again after a kill: it goes on where it stopped."""
    from ..checkpoint import remove_checkpoint
    from ..compile import compile
    from .load import load_model, read_document
    from .show import show_memory

    document = read_document(text)
    checkpoint = output.with_name(output.name + ".checkpoint")
    _require_writable(output)
    loaded = load_model(model)
    try:
        memory = compile(
            *loaded,
            document,
            recipe=recipe,
            queries=queries,
            checkpoint=checkpoint,
            keep_checkpoint=True,
            ratio=ratio,
            steps=steps,
            seed=seed,
            **parse_settings(settings or []),
        )
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"stopped; run the same command again to go on from {escape(str(checkpoint))}", soft_wrap=True
        )
        raise
    memory.save(output)
    remove_checkpoint(checkpoint)
    if as_json:
        _print_json(memory.summary() | {"path": str(output)})
    else:
        show_memory(memory, output)


@app.command()
@reports_errors
def ask(
    memory: MemoryArgument,
    questions: Annotated[list[str], typer.Argument(help="One or more questions.")],
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a memory."""
    from ..ask import ask
    from ..memory import Memory
    from .load import load_model

    stored = Memory.load(memory)
    answers = ask(*load_model(model), stored, questions, max_new_tokens=max_new_tokens)
    if as_json:
        _print_json({"answers": [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]})
    else:
        for question, answer in zip(questions, answers, strict=True):
            heading = f"[bold]{escape(question)}[/bold]\n" if len(questions) > 1 else ""
            Console().print(heading + escape(answer))


@app.command()
@reports_errors
def chat(memory: MemoryArgument, model: ModelOption = None) -> None:
    """Talk with a memory; an empty line, Ctrl-D or Ctrl-C ends it."""
    from ..conversation import Conversation
    from ..memory import Memory
    from .load import load_model

    conversation = Conversation(*load_model(model), Memory.load(memory))
    console = Console()
    while True:
        try:
            message = console.input("[bold cyan]you:[/bold cyan] ")
        except (EOFError, KeyboardInterrupt):
            break
        if not message.strip():
            break
        console.print(f"[bold green]memory:[/bold green] {escape(conversation.say(message))}")


@app.command()
@reports_errors
def inspect(memory: MemoryArgument, as_json: JsonOption = False) -> None:
    """Show what a memory is, where it came from and how compiling went."""
    from ..memory import Memory
    from .show import show_memory

    stored = Memory.load(memory)
    if as_json:
        _print_json(stored.summary())
    else:
        show_memory(stored, memory)


@app.command()
@reports_errors
def quantize(
    memory: MemoryArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The memory file to write.")],
    dtype: Annotated[str, typer.Option(help="int8, or fp8 (e4m3).")] = "int8",
    answers: Annotated[int, typer.Option(help="Answers of each kind to compare, at most.")] = 128,
    queries: QueriesOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a memory's K and V in one byte a number, and measure what that costs."""
    from ..memory import Memory
    from .load import load_model
    from .show import show_memory

    stored = Memory.load(memory)
    _require_writable(output)
    quantized = stored.quantize(dtype, *load_model(model), queries=queries, answers=answers)
    quantized.save(output)
    if as_json:
        _print_json(quantized.summary() | {"path": str(output)})
    else:
        show_memory(quantized, output)


@app.command()
@reports_errors
def export(
    memory: MemoryArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write to.")],
    to: Annotated[str, typer.Option(help="cartridge: a peft adapter; safetensors: K and V as in a cache.")],
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a memory for readers that know nothing of this package."""
    from ..export import export
    from ..memory import Memory
    from .load import load_model

    stored = Memory.load(memory)
    loaded, tokenizer = load_model(model)
    stored.verify(loaded, tokenizer)
    path = export(loaded, stored, output, to)
    if as_json:
        _print_json({"path": str(path), "to": to, "bytes": path.stat().st_size})
    else:
        Console().print(f"wrote {escape(str(path))}, {path.stat().st_size / 1024:.1f} KiB", soft_wrap=True)


@app.command()
@reports_errors
def verify(memory: MemoryArgument, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Check that a memory is whole and belongs to a model; exit code 0 only if it does."""
    from ..memory import Memory
    from .load import load_model

    Memory.load(memory).verify(*load_model(model))
    if as_json:
        _print_json({"path": str(memory), "verified": True})
    else:
        Console().print(f"{escape(str(memory))} is whole and belongs to this model", soft_wrap=True)


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


def _print_json(value: dict) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _require_writable(output: Path) -> None:
    """Fail before the work, not after it, when the result cannot be written."""
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise MemoryFileError(f"cannot write to the folder {folder}: it is missing or read-only")
