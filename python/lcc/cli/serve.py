"""``lcc serve``: memories behind OpenAI's API."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import InputError
from ..utils.terminal import say, shown
from .bank import opened
from .options import ModelOption, TrustedOption

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..serving.catalog import Catalog
    from ..serving.engine import Engine
    from ..serving.front import Front

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LLAMA_CPP = "http://127.0.0.1:8080"
# What the extra ``serve`` brings.
PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "httpx2")
MIB = 1 << 20


def serve_command(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of memories; with --bank, by default the bank's.")
    ] = None,
    model: ModelOption = None,
    name: Annotated[str | None, typer.Option(help="The model's name in requests; by default its folder's.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; by default nobody else's machine gets in.")] = LOOPBACK[0],
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LCC_API_KEY", help="A key that clients must give.", metavar="KEY")
    ] = None,
    bank: Annotated[
        Path | None, typer.Option(help="A bank that answers chats that name no memory.", metavar="BANK")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Answers that are written at once, at most.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; others are told to come again.")] = 256,
    pool: Annotated[int, typer.Option(min=1, help="MiB of attached memories that are kept.")] = 1024,
    engine: Annotated[
        Literal["transformers", "llama-cpp"], typer.Option(help="What runs the model: this process, or a server.")
    ] = "transformers",
    url: Annotated[str, typer.Option(help="llama-cpp: where its server is; nobody else may ask it.")] = LLAMA_CPP,
    states: Annotated[
        Path | None, typer.Option(help="llama-cpp: the folder of its --slot-save-path.", metavar="FOLDER")
    ] = None,
    kv: Annotated[str, typer.Option(help="llama-cpp: the type of its cache, f16 or f32.")] = "f16",
    flash_attn: Annotated[bool, typer.Option(help="llama-cpp: whether its --flash-attn is on.")] = True,
    key: TrustedOption = None,
) -> None:
    """Serve a folder of memories behind OpenAI's API."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise InputError(f"lcc serve needs {', '.join(missing)}: pip install 'lcc-kernels[serve]'")
    from ..serving.app import make_app
    from ..serving.bank_answers import BankAnswers
    from ..serving.running import listening, run
    from ..serving.transformers_engine import TransformersEngine
    from .loading import load_model

    if key and bank is not None:
        raise InputError("a bank keeps no signatures: leave --key out, or serve a folder of signed memories")
    where = _folder_of(folder, bank)
    # Loading a model takes long: what is wrong with the rest is said before.
    listening(host, port).close()
    loaded, tokenizer = load_model(model)
    base = name or _name_of(model)
    front, catalog = _front(base, where, loaded, tokenizer, key or None)
    with contextlib.ExitStack() as stack:
        answers = None
        if bank is not None:
            answers = BankAnswers(stack.enter_context(opened(bank)).open(loaded, tokenizer))
            for note in answers.bank.notes:
                say(shown(note))
        if engine == "llama-cpp":
            chosen = _llama_cpp(front, catalog, loaded, tokenizer, url, states, kv, flash_attn, queue)
        else:
            chosen = TransformersEngine(loaded, tokenizer, catalog, rows, queue, pool * MIB)
        _show(front)
        if host not in LOOPBACK and api_key is None:
            say(f"[yellow]anybody who reaches {shown(host)} may ask:[/yellow] --api-key lets only some")
        run(make_app(front, chosen, api_key, answers), host, port)


def _name_of(model: str | None) -> str:
    """The name of the model's folder or file; one such as Llama-3.2-1.5B keeps its points."""
    return "embedded" if model is None else Path(model).resolve().name.removesuffix(".gguf")


def _folder_of(folder: Path | None, bank: Path | None) -> Path:
    if folder is None and bank is None:
        raise InputError("name the folder of memories, or a --bank")
    chosen = folder or Path(bank or "", "memories")
    if not chosen.is_dir():
        what = "holds memories" if folder else "is a bank"
        raise InputError(f"there is no folder {chosen}: name one that {what}")
    return chosen


def _front(
    base: str, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trusted: list[Path] | None
) -> tuple[Front, Catalog]:
    """What reads requests, over a catalog that takes memories of this model alone, signed if keys are trusted."""
    from ..memory.attachable import check_memory, check_model
    from ..memory.memory import Memory
    from ..modeling.window import window_of
    from ..serving.catalog import Catalog
    from ..serving.front import Front
    from ..serving.prompts import Prompts

    check_model(model)

    def check(memory: Memory) -> None:
        memory.verify(model, tokenizer)
        check_memory(model, memory)

    catalog = Catalog(folder, check, trusted)
    return Front(base, catalog, Prompts(tokenizer, window_of(model))), catalog


def _llama_cpp(
    front: Front,
    catalog: Catalog,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    url: str,
    states: Path | None,
    kv: str,
    flash_attn: bool,
    queue: int,
) -> Engine:
    """A llama.cpp server as the engine; requests must fit into one of its slots."""
    from ..memory.llama_cpp import StateOptions
    from ..serving.llama_cpp_engine import LlamaCppEngine, look_at

    if states is None:
        raise InputError("name the folder of the server's --slot-save-path with --states")
    server = look_at(url, states)
    options = StateOptions(kv, flash_attn, **server.state)  # type: ignore[arg-type]
    front.prompts.window = min(front.prompts.window, server.window)
    return LlamaCppEngine(model, tokenizer, catalog, url, states, options, server.slots, queue)


def _show(front: Front) -> None:
    rows = front.listed()
    served = [row for row in rows if "error" not in row]
    say(f"{len(served)} memories of the model {shown(front.base)} in {shown(front.catalog.folder)}")
    for row in rows:
        if "error" in row:
            say(f"[red]not served:[/red] {shown(row['error']['message'])}")
