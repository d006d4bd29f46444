"""Memories by ``lcc.compile`` with one compiler or another: the same data, loss, steps and early stopping."""

from __future__ import annotations

from collections.abc import Callable

from lcc.evaluation import MemoryMethod
from lcc.pipeline.memory_method import compiled_memories

from .memory_embeddings import MemoryEmbeddingsCompiler
from .workbench import Options, Peer, Workbench

RECONSTRUCTION_ALONE = {"general_weight": 0.0, "self_study_weight": 0.0}
# A compiler's rank costs nothing once it is thrown away. That of a LoRA which stays costs bytes.
RANK: Options = {"rank": 64, "alpha": 64.0}


def compiled_with(compiler: str) -> Callable[[str, Workbench, Options], MemoryMethod]:
    """Builds the method whose memories ``compiler`` makes."""

    def build(name: str, bench: Workbench, options: Options) -> MemoryMethod:
        return compiled_memories(
            bench.model,
            bench.tokenizer,
            bench.folder / "memories",
            bench.settings_for(options, compiler),
            compiler,
            name=name,
            surrogates=bench.surrogates,
        )

    return build


LCC = Peer(compiled_with("lcc"), "Latent Context Compilation, this package's writer", (RANK,), start=2e-2)
DIRECT_KV = Peer(
    compiled_with("direct_kv"),
    "Cartridges' direct KV optimisation, on LCC's data and loss: our implementation",
    start=0.1,
)
MEMORY_EMBEDDINGS = Peer(
    compiled_with(MemoryEmbeddingsCompiler.name),
    "GradMem's inner loop without its meta-training, on LCC's data or on reconstruction alone: our implementation",
    ({}, RECONSTRUCTION_ALONE),
    start=0.1,
)
