"""Memories by ``lcc.compile`` with one writer or another: the same surrogate data, loss, steps and early stopping."""

from __future__ import annotations

from lcc.encode import WriterFactory, lora_compiler
from lcc.evaluation import CompiledMemory

from .workbench import LEARNING_RATES, Options, Peer, Workbench


def compiled_with(writer: WriterFactory):
    """Builds the method whose memories ``writer`` writes."""

    def build(name: str, bench: Workbench, options: Options) -> CompiledMemory:
        engine = {} if writer is lora_compiler else {"engine": "reference"}
        settings = bench.trained(options | engine)
        return CompiledMemory(bench.model, bench.tokenizer, bench.folder / name, settings, name=name, writer=writer)

    return build


LCC = Peer(compiled_with(lora_compiler), "Latent Context Compilation, this package's default recipe", LEARNING_RATES)
