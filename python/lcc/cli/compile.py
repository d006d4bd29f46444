"""``lcc compile``: one text into a memory file, or many into a folder; ``--dry-run`` says what that would take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..compilers.registry import DEFAULT
from ..errors import InputError, MemoryFileError, TargetError
from ..pipeline.settings import AUTO
from ..utils.outputs import check_folder, input_paths, model_paths, names_folder
from ..utils.progress import Reporter
from ..utils.terminal import say, shown
from ..utils.utf8 import read_file
from .options import (
    AutoRatioOption,
    BudgetOption,
    CertifyOption,
    CompilerOption,
    JsonOption,
    LogFileOption,
    MaxBytesOption,
    ModelOption,
    QueriesOption,
    QuestionsOption,
    RecipeOption,
    RedactOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    TargetOption,
    chosen_settings,
    is_given,
    passages,
    print_json,
)


def compile_command(
    context: typer.Context,
    texts: Annotated[
        list[Path],
        typer.Argument(help="UTF-8 files, or - for standard input.", metavar="TEXT...", allow_dash=True),
    ],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="PATH", help="The memory file to write, or the folder for several."),
    ] = None,
    ratio: AutoRatioOption = 16.0,
    target: TargetOption = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    recipe: RecipeOption = "default",
    compiler: CompilerOption = DEFAULT,
    queries: QueriesOption = None,
    start: Annotated[
        Path | None, typer.Option(help="A memory of the same text and ratio to go on from.", metavar="MEMORY")
    ] = None,
    distractors: Annotated[
        list[Path] | None,
        typer.Option(
            help="A memory of another text, or a folder of them, to train among, for memories that are read together; "
            "repeatable.",
            metavar="PATH",
        ),
    ] = None,
    redact: RedactOption = None,
    budget: BudgetOption = None,
    max_bytes: MaxBytesOption = None,
    questions: QuestionsOption = None,
    certify: CertifyOption = True,
    settings: SettingsOption = None,
    force: Annotated[bool, typer.Option(help="Replace what is there but differs, be it no memory.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Compile several texts on a Ray cluster: its address, or local.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take; write nothing.")] = False,
    real_steps: Annotated[
        bool, typer.Option("--real-steps", help="With --dry-run: time whole steps, and measure their memory.")
    ] = False,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile texts into memories. Run it again after a kill: it goes on where it stopped, and skips what is done."""
    options: dict[str, Any] = {"recipe": recipe, "compiler": compiler, "queries": queries, "distractors": distractors}
    if max_bytes is not None and not is_given(context, "ratio"):
        ratio = None
    options |= chosen_settings(context, settings, compiler, ratio=ratio, steps=steps, seed=seed)
    if dry_run and max_bytes is not None:
        raise InputError("a dry run is of one ratio, which --max-bytes chooses: give --ratio instead")
    if dry_run and options["ratio"] == AUTO:
        raise InputError("a dry run is of one ratio: name one of those that auto tries (32, 16, 8, 4, 2)")
    if dry_run and budget is not None:
        raise InputError("a budget plans by itself: leave --dry-run out")
    hidden = passages(redact)
    if dry_run:
        _plan(texts, model, hidden, options | {"real_steps": real_steps}, as_json)
        return
    if real_steps:
        raise InputError("--real-steps goes with --dry-run")
    options |= {"certify": certify, "questions": questions, "target": target, "start": start, "budget": budget}
    options |= {"redact": hidden, "max_bytes": max_bytes}
    if not output:
        raise InputError("name the memory file to write with -o, or its folder for several texts")
    if len(texts) > 1 or names_folder(output):
        _compile_folder(texts, Path(output), model, options | {"force": force}, ray, log_file, as_json)
    elif ray:
        raise InputError("--ray is for a folder of memories: give a folder with -o")
    else:
        read = input_paths(*texts, queries, questions, *(redact or ()))
        _compile_one(texts[0], Path(output), model, options, read, force, log_file, as_json)


def _compile_one(
    text: Path,
    path: Path,
    model: str | None,
    options: dict[str, Any],
    read: tuple[Path, ...],
    force: bool,
    log_file: Path | None,
    as_json: bool,
) -> None:
    from ..memory.memory import Memory
    from ..memory.store import checkpoint_beside
    from ..pipeline.compile_to import compile_to, memory_output
    from ..pipeline.options import CompileOptions, Run
    from .launch import launched
    from .loading import load_model
    from .tables import show_memory

    document, inputs = read_file(text), (*read, *model_paths(model))
    # Whose memory may be replaced hangs on the text, which is redacted as the tokenizer can write it.
    memory_output(path, document, inputs, force or bool(options["redact"])).check()
    chosen = CompileOptions.of(**options)
    with launched() as (ranks, place):
        loaded = load_model(model, place)
        document = chosen.redacted(document, loaded[1])
        output = memory_output(path, document, inputs, force)
        run = Run(restart=force, distributed=ranks.count > 1)
        failure: TargetError | None = None
        status = "compiled"
        try:
            with _reporter(ranks.main, log_file) as reporter:
                status = compile_to(*loaded, document, output, chosen, run, reporter)
        except KeyboardInterrupt:
            say(f"stopped; run the same command again to go on from {shown(checkpoint_beside(output))}")
            raise
        except TargetError as missed:
            failure = missed
    if status == "locked":
        raise MemoryFileError(f"another process is writing {output}: wait for it, or name another file")
    if ranks.main and status == "skipped":
        say(f"skipped: {shown(output)} is there already, of this text, these settings and this model")
    if ranks.main and as_json:
        print_json(Memory.load(output).summary() | {"path": str(output)})
    elif ranks.main:
        show_memory(Memory.load(output), path)
    if failure:
        raise failure


def _compile_folder(
    texts: list[Path],
    folder: Path,
    model: str | None,
    options: dict[str, Any],
    ray: str | None,
    log_file: Path | None,
    as_json: bool,
) -> None:
    from ..pipeline.batch import compile_documents
    from .launch import launched
    from .loading import load_model
    from .ray_batch import compile_on_ray
    from .tables import show_outcomes

    if Path("-") in texts:
        raise InputError("standard input has no name for a file in a folder: name the memory file, or write it to one")
    check_folder(folder)
    try:
        if ray is not None:
            with _reporter(True, log_file) as reporter:
                outcomes = compile_on_ray(model, texts, folder, address=ray, progress=reporter, **options)
            main = True
        else:
            with launched() as (ranks, place):
                loaded, main = load_model(model, place), ranks.main
                options |= {"distributed": ranks.count > 1}
                with _reporter(main, log_file) as reporter:
                    outcomes = compile_documents(*loaded, texts, folder, progress=reporter, **options)
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        raise
    if main and as_json:
        print_json({"documents": [vars(outcome) for outcome in outcomes]})
    elif main:
        show_outcomes(outcomes)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _plan(texts: list[Path], model: str | None, hidden: list[str], options: dict[str, Any], as_json: bool) -> None:
    from ..pipeline.plan import plan
    from ..text.queries import named_queries
    from ..text.redaction import redact
    from .loading import load_model
    from .tables import show_plan

    # A pipe can be read only once.
    loaded = load_model(model)
    options |= {"queries": named_queries(options["queries"])}
    plans = {str(text): plan(*loaded, redact(read_file(text), hidden, loaded[1]), **options) for text in texts}
    if as_json:
        print_json({"documents": [{"source": source} | plan.to_dict() for source, plan in plans.items()]})
    else:
        for source, planned in plans.items():
            show_plan(planned, source)


def _reporter(main: bool, log_file: Path | None) -> Reporter:
    return Reporter(main, log_file if main else None)
