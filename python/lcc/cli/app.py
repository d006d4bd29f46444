"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .compile import compile_command
from .eval import eval_command
from .options import (
    JsonOption,
    MemoryArgument,
    ModelOption,
    QueriesOption,
    RatioOption,
    RecipeOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    parse_settings,
    print_json,
    reports_errors,
    require_writable,
)

app = typer.Typer(
    help="Compile a long document once, ask it many times.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("compile")(compile_command)
app.command("eval")(eval_command)


def main() -> None:
    """Entry point."""
    app()


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
        print_json(report.to_dict())
    else:
        show_demo(report)


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
        print_json({"answers": [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]})
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
        print_json(stored.summary())
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
    require_writable(output)
    quantized = stored.quantize(dtype, *load_model(model), queries=queries, answers=answers)
    quantized.save(output)
    if as_json:
        print_json(quantized.summary() | {"path": str(output)})
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
        print_json({"path": str(path), "to": to, "bytes": path.stat().st_size})
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
        print_json({"path": str(memory), "verified": True})
    else:
        Console().print(f"{escape(str(memory))} is whole and belongs to this model", soft_wrap=True)
