"""``lcc update``: a memory takes more text in."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..compilers.registry import DEFAULT
from ..errors import InputError, MemoryFileError
from ..utils.outputs import input_paths, model_paths, place
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, say, shown
from ..utils.utf8 import read_file
from .options import (
    CertifyOption,
    CompilerOption,
    JsonOption,
    LogFileOption,
    MemoryArgument,
    ModelOption,
    QueriesOption,
    QuestionsOption,
    RecipeOption,
    RedactOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    chosen_settings,
    passages,
    print_json,
)


def update_command(
    context: typer.Context,
    memory: MemoryArgument,
    text: Annotated[
        Path, typer.Argument(help="What to take in: UTF-8, or - for standard input.", metavar="TEXT", allow_dash=True)
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="PATH", help="The memory file to write.")],
    growing: Annotated[
        bool,
        typer.Option("--growing/--constant", help="Add buffer tokens for the new text, or keep the memory's size."),
    ] = True,
    ratio: Annotated[
        float | None, typer.Option(help="Tokens of the new text a buffer token; the memory's own by default.")
    ] = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    recipe: RecipeOption = "default",
    compiler: CompilerOption = DEFAULT,
    queries: QueriesOption = None,
    questions: QuestionsOption = None,
    redact: RedactOption = None,
    certify: CertifyOption = True,
    delta: Annotated[
        Path | None,
        typer.Option(help="Write also what turns MEMORY into the new one: see lcc apply.", metavar="PATH"),
    ] = None,
    settings: SettingsOption = None,
    force: Annotated[
        bool, typer.Option(help="Replace what is there but differs; with it -o may name MEMORY itself.")
    ] = False,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take more text into a memory, without the text that it was made from. Run it again after a kill: it goes on."""
    from ..memory.delta import delta_output
    from ..memory.memory import Memory
    from ..memory.store import checkpoint_beside
    from ..pipeline.options import Run
    from ..pipeline.update import update_options
    from ..pipeline.update_to import update_output, update_to
    from .loading import load_model
    from .rewriting import SIGNATURE_GONE, is_signed_file
    from .tables import show_memory

    chosen: dict[str, Any] = chosen_settings(context, settings, compiler, ratio=ratio, steps=steps, seed=seed)
    hidden = passages(redact)
    options = update_options(memory, growing, recipe, compiler, queries, certify, questions, hidden, **chosen)
    document, path = read_file(text), place(output, memory.name)
    inputs = (*input_paths(text, queries, questions, *(redact or ())), *model_paths(model))
    # Which memory may be replaced hangs on the text, which is redacted as the tokenizer can write it.
    target = update_output(path, memory, document, options, inputs, force)
    replace(target, force=force or bool(hidden)).check()
    shipped = delta_output(delta, (memory, target.path, *inputs), force) if delta else None
    if shipped:
        if os.path.realpath(shipped) == os.path.realpath(target):
            raise InputError(f"--delta and --output are both {target}: name two files")
        shipped.check()
    loaded = load_model(model)
    document = options.redacted(document, loaded[1])
    target = update_output(path, memory, document, options, inputs, force)
    signed = is_signed_file(target)
    try:
        with Reporter(log_file=log_file) as reporter:
            status = update_to(*loaded, memory, document, target, options, Run(restart=force), reporter, shipped)
    except KeyboardInterrupt:
        say(f"stopped; run the same command again to go on from {shown(checkpoint_beside(target))}")
        raise
    if status == "locked":
        raise MemoryFileError(f"another process is writing {target}: wait for it, or name another file")
    if status == "skipped":
        say(f"skipped: {shown(target)} took this text in last; to take it in once more, name another file")
    stored = Memory.load(target)
    if as_json:
        print_json(stored.summary() | {"path": str(target)} | ({"delta": str(shipped)} if shipped else {}))
        return
    show_memory(stored, target.path)
    if signed and status == "compiled":
        Terminal().print(SIGNATURE_GONE)
    if shipped:
        size = shipped.path.stat().st_size / 1024
        Terminal().print(f"wrote {shown(shipped)}, {size:.1f} KiB, for lcc apply", soft_wrap=True)
