"""``lcc serve``: memories behind OpenAI's API."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..utils.terminal import Terminal, shown
from .options import ModelOption

if TYPE_CHECKING:
    from ..serving.front import Front

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MIB = 1 << 20


def serve_command(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of memories; with --bank, by default the bank's.")
    ] = None,
    model: ModelOption = None,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; by default its folder's.")] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; other machines reach loopback addresses not.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LCC_API_KEY", help="A key that clients must give.", metavar="KEY")
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="A bank that answers chats that name no memory.", metavar="BANK")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers that are written at once, at most.")] = 64,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; further ones are told to come again.")
    ] = 256,
    pool: Annotated[int, typer.Option(min=1, help="MiB of attached memories that are kept.")] = 1024,
) -> None:
    """Serve a folder of memories behind OpenAI's API."""
    for package, extra in (("fastapi", "serve"), ("uvicorn", "serve"), ("prometheus_client", "serve")):
        _require(package, extra)
    from ..memory.attachable import check_memory, check_model
    from ..memory.memory import Memory
    from ..modeling.window import window_of
    from ..serving.app import make_app
    from ..serving.front import Front
    from ..serving.library import Library
    from ..serving.prompts import Prompts
    from ..serving.running import run
    from ..serving.transformers_engine import TransformersEngine
    from .loading import load_model

    where = _folder_of(folder, bank)
    loaded, tokenizer = load_model(model)
    check_model(loaded)

    def check(memory: Memory) -> None:
        memory.verify(loaded, tokenizer)
        check_memory(loaded, memory)

    library = Library(where, check)
    front = Front(name or _name_of(model), library, Prompts(tokenizer, window_of(loaded)))
    with contextlib.ExitStack() as stack:
        answers = None
        if bank is not None:
            from ..serving.bank_answers import BankAnswers
            from .bank import opened

            answers = BankAnswers(stack.enter_context(opened(bank)).open(loaded, tokenizer))
        engine = TransformersEngine(loaded, tokenizer, library, rows, queue, pool * MIB)
        _show(front)
        if host not in LOOPBACK and api_key is None:
            _say(f"[yellow]anybody who reaches {shown(host)} may ask:[/yellow] --api-key lets only some")
        run(make_app(front, engine, api_key, answers), host, port)


def _name_of(model: str | None) -> str:
    """The name of the model's folder or file; one such as Llama-3.2-1.5B keeps its points."""
    return "embedded" if model is None else Path(model).resolve().name.removesuffix(".gguf")


def _folder_of(folder: Path | None, bank: Path | None) -> Path:
    if folder is not None:
        return folder
    if bank is None:
        raise InputError("name the folder of memories, or a --bank")
    return bank / "memories"


def _show(front: Front) -> None:
    rows = front.listed()
    served = [row for row in rows if "error" not in row]
    _say(f"{len(served)} memories of the model {shown(front.base)} in {shown(front.library.folder)}")
    for row in rows:
        if "error" in row:
            _say(f"[red]not served:[/red] {shown(row['error']['message'])}")


def _require(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise InputError(f"lcc serve needs {package}: pip install 'lcc-kernels[{extra}]'")


def _say(message: str, **options: Any) -> None:
    Terminal(stderr=True).print(message, soft_wrap=True, **options)
