"""Memories as a method of an evaluation: one of each context, compiled once and kept in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiler
from ..compilers.registry import DEFAULT, get, record
from ..errors import MismatchError
from ..evaluation.methods import MemoryMethod
from ..memory.memory import Memory
from ..memory.store import Claim, FileStore, get_or_make
from ..text.queries import named_queries
from ..utils.hashing import json_digest, text_digest
from ..utils.outputs import MEMORY_SUFFIX, Output, make_folder
from ..utils.progress import Reporter, reporting
from .compile import make_memory
from .options import CompileOptions, Run
from .settings import CompileSettings


def compiled_memories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    settings: CompileSettings,
    compiler: str | Compiler = DEFAULT,
    queries: str | Iterable[str] | None = None,
    progress: bool | Reporter = False,
    name: str = "memory",
    surrogates: Path | None = None,
    batch: int = 32,
) -> MemoryMethod:
    """The method whose memories are compiled with ``settings`` and kept in ``folder``; a killed compilation goes on.

    Args:
        queries: context-agnostic queries, see ``lcc.load_queries``.
        progress: show compile's progress on stderr, or the reporter to show it with.
        name: how its results are labelled.
        surrogates: where distillation data is shared with other methods, see ``lcc.compile``.
        batch: questions answered at once.

    Raises:
        InputError: the queries or the compiler cannot be used.
        MemoryFileError: the folder cannot be made.
    """
    chosen = get(compiler)
    options = CompileOptions(settings, chosen, None, named_queries(queries), None, False)
    make_folder(folder)
    depends: dict[str, Any] = {"settings": settings.flat(), "queries": json_digest(options.queries_for(tokenizer))}
    depends |= {"compiler": record(chosen)}
    store = FileStore(lambda key: Output.of(folder / f"{key}{MEMORY_SUFFIX}"))

    def memory_of(context: str) -> Memory:
        def make(claim: Claim) -> Memory:
            run = Run(checkpoint=claim.checkpoint, shared_data=surrogates)
            with reporting(progress) as reporter:
                return make_memory(model, tokenizer, context, options, run, reporter)

        key = json_digest([context, method.identity])[:24]
        get_or_make(store, key, make, wait=True)
        memory = store.get(key)
        if memory is None or memory.source_sha256 != text_digest(context):
            path = folder / f"{key}{MEMORY_SUFFIX}"
            raise MismatchError(f"{path} is not the memory of its text: delete it, and it is compiled again")
        return memory

    method = MemoryMethod(model, tokenizer, memory_of, depends, name, batch)
    return method
