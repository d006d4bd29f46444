"""``lcc bank``: a folder of memories."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..compilers.registry import DEFAULT
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, say, shown
from .options import (
    DEFAULT_BANK,
    AutoRatioOption,
    BankOption,
    BudgetOption,
    CertifyOption,
    Command,
    CompilerOption,
    JsonOption,
    LogFileOption,
    ModelOption,
    QueriesOption,
    RecipeOption,
    RedactOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    TargetOption,
    chosen_settings,
    passages,
    print_json,
)

if TYPE_CHECKING:
    from ..bank.bank import MemoryBank
    from ..bank.index import Document

bank_commands = typer.Typer(no_args_is_help=True, help="A folder of memories of one model.")
command = partial(bank_commands.command, cls=Command)
KeyArgument = Annotated[str, typer.Argument(help="The name of a memory.", metavar="KEY")]


@contextmanager
def opened(path: Path, create: bool = False) -> Iterator[MemoryBank]:
    """A bank; what was wrong with it is said on stderr.

    Raises:
        MemoryFileError: as ``MemoryBank``.
    """
    from ..bank.bank import MemoryBank

    with MemoryBank(path, create) as bank:
        if bank.rebuilt:
            say(f"the index of {shown(bank.path)} {shown(bank.rebuilt)}: it was made anew from the memories")
        for key, error in bank.damaged.items():
            say(f"[red]damaged:[/red] {shown(key)} is skipped: {shown(error)}")
        yield bank


@command("add")
def add_command(
    context: typer.Context,
    documents: Annotated[
        list[Path], typer.Argument(help="UTF-8 files to compile, and memories' files to import.", metavar="DOCUMENT...")
    ],
    bank: BankOption = DEFAULT_BANK,
    ratio: AutoRatioOption = 16.0,
    target: TargetOption = None,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    recipe: RecipeOption = "default",
    compiler: CompilerOption = DEFAULT,
    queries: QueriesOption = None,
    budget: BudgetOption = None,
    redact: RedactOption = None,
    certify: CertifyOption = True,
    settings: SettingsOption = None,
    forget_text: Annotated[
        bool, typer.Option("--forget-text", help="Keep no text, and forget those of these documents that were kept.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace memories that are there but differ.")] = False,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile documents into a bank. Run it again after a kill: it goes on where it stopped, and skips what is done."""
    from ..pipeline.options import CompileOptions
    from .bank_add import add_documents, keys_of
    from .tables import show_outcomes

    options: dict[str, Any] = {"recipe": recipe, "compiler": compiler, "queries": queries}
    options |= chosen_settings(context, settings, compiler, ratio=ratio, steps=steps, seed=seed)
    chosen = CompileOptions.of(**options, certify=certify, target=target, budget=budget, redact=passages(redact))
    sources, read = keys_of(documents), (queries, *(redact or ()))
    try:
        with opened(bank, create=True) as store, Reporter(log_file=log_file) as reporter:
            outcomes = add_documents(
                store, model, sources, chosen, reporter, read=read, keep_text=not forget_text, force=force
            )
            for key in sources:
                if key in store and not store.passages(key):
                    say(f"{shown(key)} has neither questions nor a text that is kept: no query will find it")
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        raise
    if as_json:
        print_json({"bank": str(bank), "documents": [vars(outcome) for outcome in outcomes]})
    else:
        show_outcomes(outcomes)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


@command("list")
def list_command(bank: BankOption = DEFAULT_BANK, as_json: JsonOption = False) -> None:
    """List the memories of a bank, damaged ones among them."""
    from .bank_tables import show_documents

    with opened(bank) as store:
        documents = store.documents()
    if as_json:
        print_json({"bank": str(bank), "documents": list(map(_summary, documents))})
    else:
        show_documents(documents)


@command("show")
def show_command(key: KeyArgument, bank: BankOption = DEFAULT_BANK, as_json: JsonOption = False) -> None:
    """Show a memory of a bank: what it is, and what it is found by."""
    from .tables import show_memory

    with opened(bank) as store:
        memory, document, passages = store.memory(key), store.document(key), store.passages(key)
        path = store.folder.memory(key)
    if as_json:
        listed = [passage._asdict() for passage in passages]
        print_json(memory.summary() | _summary(document) | {"path": str(path), "passages": listed})
    else:
        show_memory(memory, path)
        kinds = [passage.kind for passage in passages]
        found_by = f"{kinds.count('question')} questions and {kinds.count('text')} windows of its text"
        Terminal().print(f"{shown(key)} is found by {found_by}", soft_wrap=True)


@command("remove")
def remove_command(
    keys: Annotated[list[str], typer.Argument(help="Names of memories.", metavar="KEY...")],
    bank: BankOption = DEFAULT_BANK,
    as_json: JsonOption = False,
) -> None:
    """Delete memories and their texts from a bank."""
    with opened(bank) as store:
        store.remove(*keys)
    if as_json:
        print_json({"bank": str(bank), "removed": keys})
    else:
        Terminal().print(f"removed {shown(', '.join(keys))}", soft_wrap=True)


@command("verify")
def verify_command(bank: BankOption = DEFAULT_BANK, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """Check that all of a bank is whole and belongs to a model; exit code 0 only if it is."""
    from .loading import load_model

    with opened(bank) as store:
        count, problems = len(store.documents()), store.verify(*load_model(model))
    if as_json:
        print_json({"bank": str(bank), "documents": count, "problems": [vars(problem) for problem in problems]})
    else:
        for problem in problems:
            named = f"{shown(problem.key)}: " if problem.key else ""
            Terminal().print(f"[red]problem:[/red] {named}{shown(problem.what)}", soft_wrap=True)
        Terminal().print(f"{count} memories, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@command("rebuild")
def rebuild_command(bank: BankOption = DEFAULT_BANK, as_json: JsonOption = False) -> None:
    """Make the index of a bank anew from its memories."""
    with opened(bank) as store:
        store.rebuild()
        documents = store.documents()
    if as_json:
        print_json({"bank": str(bank), "documents": len(documents)})
    else:
        Terminal().print(f"the index of {shown(bank)} has {len(documents)} memories", soft_wrap=True)


def _summary(document: Document) -> dict[str, Any]:
    return {name: value for name, value in vars(document).items() if name != "files"}
