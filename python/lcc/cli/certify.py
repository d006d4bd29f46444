"""``lcc certify``: what a memory answers where it is served."""

from __future__ import annotations

from typing import Annotated

import typer

from ..utils.outputs import MEMORY_SUFFIX
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, shown
from .options import JsonOption, MemoryArgument, ModelOption, QueriesOption, print_json


def certify_command(
    memory: MemoryArgument,
    engine: Annotated[str, typer.Option(help="What serves it, for the row: vllm, llama-cpp, transformers, …")],
    url: Annotated[str, typer.Option(help="The server's API.")] = "http://127.0.0.1:8000/v1",
    dtype: Annotated[str, typer.Option(help="What it computes in, for the row; fp8 caches too.")] = "float32",
    name: Annotated[str | None, typer.Option(help="The memory's id on the server; by default the file's.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LCC_API_KEY", help="The server's key.", metavar="KEY")] = None,
    questions: QueriesOption = None,
    count: Annotated[int, typer.Option(min=1, help="Questions at most.")] = 32,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a server's answers from a memory with those of lcc ask, and write the outcome into the memory's file."""
    from ..serving.certifying import ServedMemory, certify_served
    from ..serving.memory_files import served_digest
    from ..text.queries import load_queries
    from .loading import load_model
    from .rewriting import OwnFile

    file = OwnFile(memory)
    file.check()
    stored = file.memory
    served = ServedMemory(url, name or memory.name.removesuffix(MEMORY_SUFFIX), served_digest(stored), api_key)
    loaded, tokenizer = load_model(model)
    queries = load_queries(questions, tokenizer) if questions else ()
    with Reporter() as reporter:
        certified = certify_served(
            stored, loaded, tokenizer, served.ask, " ".join((engine, served.version)).strip(), dtype, queries, count,
            report=reporter.count,
        )  # fmt: skip
    signed = file.write(certified, quiet=as_json)
    row = certified.served[-1]
    if as_json:
        print_json({"path": str(memory), "signature_dropped": signed, **row})
        return
    Terminal().print(f"{row['same']} of {row['answers']} answers of {shown(row['engine'])} are those of lcc ask")
    for changed in row["changed"]:
        Terminal().print(f"{shown(changed['question'])}\n  lcc ask: {shown(changed['lcc'])}\n"
                         f"  served:  {shown(changed['served'])}", soft_wrap=True)  # fmt: skip
