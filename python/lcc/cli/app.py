"""The commands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .compile import compile_command
from .options import (
    JsonOption,
    MemoryArgument,
    ModelOption,
    RatioOption,
    RecipeOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    parse_settings,
    print_json,
    reports_errors,
)

app = typer.Typer(
    help="Compile a long document once, ask it many times.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("compile")(compile_command)


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
def verify(memory: MemoryArgument, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Check that a memory is whole and belongs to a model; exit code 0 only if it does."""
    from ..memory import Memory
    from .load import load_model

    Memory.load(memory).verify(*load_model(model))
    if as_json:
        print_json({"path": str(memory), "verified": True})
    else:
        Console().print(f"{escape(str(memory))} is whole and belongs to this model", soft_wrap=True)
