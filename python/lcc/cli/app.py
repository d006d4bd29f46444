"""The commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..compilers.registry import DEFAULT
from ..pipeline.settings import make_settings
from ..utils.outputs import input_paths, model_paths, place
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, plain, shown, shown_lines
from ..utils.utf8 import prepare_streams
from .bank_ask import bank_commands
from .boundary import boundary
from .certify import certify_command
from .chat import chat_command
from .compile import compile_command
from .delta import apply_command, delta_command
from .evaluate import eval_command
from .leaks import leaks_command
from .log import log_command
from .options import (
    Command,
    CompilerOption,
    ForceOption,
    JsonOption,
    LogFileOption,
    MemoryArgument,
    ModelOption,
    QueriesOption,
    RatioOption,
    RecipeOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    chosen_settings,
    print_json,
)
from .serve import serve_command
from .sign import keygen_command, sign_command
from .strip import strip_command
from .update import update_command
from .verify import verify_command

UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """The commands, inside the boundary: typer's own handling of an interrupt says nothing."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the arguments before the command's name; raises what ``_inside`` does."""
        with _inside():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named; raises what ``_inside`` does."""
        with _inside():
            return super().invoke(ctx)


@contextmanager
def _inside() -> Iterator[None]:
    """``boundary``, with wrong usage told without the control characters of a file's name.

    Raises:
        SystemExit: as ``boundary`` does.
        UsageError: an option or an argument is wrong.
    """
    try:
        with boundary():
            yield
    except UsageError as error:
        error.message = plain(error.message)
        raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
command = partial(app.command, cls=Command)
command("compile")(compile_command)
command("update")(update_command)
command("eval")(eval_command)
app.add_typer(bank_commands, name="bank")


def run() -> None:
    """Run the command line, whatever the terminal's encoding, and also where a stream is closed."""
    prepare_streams()
    with boundary():
        app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from ..utils.version import __version__

        typer.echo(f"lcc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compile a long document once, ask it many times."""


@command()
def demo(
    context: typer.Context,
    ratio: RatioOption = 8.0,
    seed: SeedOption = 0,
    steps: StepsOption = None,
    recipe: RecipeOption = "default",
    compiler: CompilerOption = DEFAULT,
    settings: SettingsOption = None,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile an unseen document, throw its text away, and compare answers."""
    from .demo import demo_document, run_demo
    from .loading import load_model
    from .tables import show_demo, show_document

    chosen = chosen_settings(context, settings, compiler, seed=seed, ratio=ratio, steps=steps)
    make_settings(recipe, compiler, **chosen)
    if not as_json:
        show_document(demo_document(chosen["seed"]))
    with Reporter(log_file=log_file) as reporter:
        report = run_demo(*load_model(model), progress=reporter, recipe=recipe, compiler=compiler, **chosen)
    if as_json:
        print_json(report.to_dict())
    else:
        show_demo(report)


@command()
def ask(
    memory: MemoryArgument,
    questions: Annotated[list[str], typer.Argument(help="One or more questions.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a memory."""
    from ..inference.asking import ask
    from ..memory.memory import Memory
    from .loading import load_model

    stored = Memory.load(memory)
    answers = ask(*load_model(model), stored, questions, max_new_tokens=max_new_tokens)
    if as_json:
        print_json({"answers": [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]})
    else:
        for question, answer in zip(questions, answers, strict=True):
            heading = f"[bold]{shown(question)}[/bold]\n" if len(questions) > 1 else ""
            Terminal().print(heading + shown_lines(answer))


command("chat")(chat_command)
command("serve")(serve_command)
command("certify")(certify_command)
command("leaks")(leaks_command)
command("strip")(strip_command)


@command()
def inspect(memory: MemoryArgument, as_json: JsonOption = False) -> None:
    """Show what a memory is, where it came from and how compiling went."""
    from ..memory.memory import Memory
    from .tables import show_memory

    stored = Memory.load(memory)
    if as_json:
        print_json(stored.summary())
    else:
        show_memory(stored, memory)


@command()
def quantize(
    memory: MemoryArgument,
    output: Annotated[str, typer.Option("-o", "--output", metavar="PATH", help="The memory file to write.")],
    dtype: Annotated[str, typer.Option(help="int8, fp8 (e4m3), or int4.")] = "int8",
    answers: Annotated[int, typer.Option(help="Answers of each kind to compare, at most.")] = 128,
    queries: QueriesOption = None,
    force: ForceOption = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a memory's K and V in one byte a number or half a byte, and measure what that costs."""
    from ..evaluation.quantization_cost import quantize
    from ..memory.memory import Memory
    from ..memory.quantization import check_request, quantized_output
    from .loading import load_model
    from .tables import show_memory

    stored = Memory.load(memory)
    check_request(stored, dtype, answers)
    inputs = (*input_paths(memory, queries), *model_paths(model))
    target = quantized_output(place(output, memory.name), stored, inputs, force)
    target.check()
    quantized = quantize(stored, dtype, *load_model(model), queries=queries, answers=answers)
    quantized.save(target)
    if as_json:
        print_json(quantized.summary() | {"path": str(target)})
    else:
        show_memory(quantized, target.path)


@command()
def export(
    memory: MemoryArgument,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="PATH", help="The folder to write to; of llama-cpp also the file.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="cartridge: K and V as a peft adapter; safetensors: K and V as in a cache; llama-cpp: a state that "
            "its server restores; peft: an adapter as a LoRA."
        ),
    ],
    kv: Annotated[
        str | None, typer.Option(help="llama-cpp: the type of the server's cache, f16 (its default) or f32.")
    ] = None,
    flash_attn: Annotated[
        bool | None, typer.Option(help="llama-cpp: whether the server's --flash-attn is on, as by default.")
    ] = None,
    state_version: Annotated[
        int | None, typer.Option(help="llama-cpp: the version of the states that the server saves.", metavar="N")
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(help="llama-cpp: of the server's cache: 1 with --kv-unified, else one a slot.", metavar="N"),
    ] = None,
    force: ForceOption = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a memory for readers that know nothing of this package."""
    from ..memory.exporters import export, export_files
    from ..memory.memory import Memory
    from .loading import load_model

    stored = Memory.load(memory)
    inputs = (*input_paths(memory), *model_paths(model))
    given = {"kv": kv, "flash_attn": flash_attn, "state_version": state_version, "streams": streams}
    options = {name: value for name, value in given.items() if value is not None}
    export_files(output, to, force, inputs, options)
    loaded, tokenizer = load_model(model)
    stored.verify(loaded, tokenizer)
    path = export(loaded, stored, output, to, verify=False, force=force, inputs=inputs, **options)
    size, prompt = path.stat().st_size, _prompt_of(path, to)
    if as_json:
        print_json({"path": str(path), "to": to, "bytes": size} | prompt)
        return
    Terminal().print(f"wrote {shown(path)}, {size / 1024:.1f} KiB", soft_wrap=True)
    if prompt:
        repeated = "{tokens} x token {placeholder}".format(**prompt)
        Terminal().print(f"a prompt is {repeated}, and then the query's tokens", soft_wrap=True)


def _prompt_of(path: Path, to: str) -> dict[str, int]:
    """What a prompt begins with that is answered by a server's state: so many times one token."""
    if to != "llama-cpp":
        return {}
    from ..memory.llama_cpp import placeholders

    ids = placeholders(path)
    return {"tokens": len(ids), "placeholder": ids[0]}


command("verify")(verify_command)
command("log")(log_command)
command("keygen")(keygen_command)
command("sign")(sign_command)
command("delta")(delta_command)
command("apply")(apply_command)
