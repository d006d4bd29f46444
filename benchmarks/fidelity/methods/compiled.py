"""Memories by ``lcc.compile`` with every compiler that is registered; those that train have the same data and steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from lcc.compilers import registry
from lcc.compilers.attention_matching.heads import SELECTIONS
from lcc.evaluation import MemoryMethod
from lcc.pipeline.memory_method import compiled_memories

from .workbench import Options, Peer, Workbench

WRITE_RATES = (0.3, 1.0, 3.0)
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


# What is searched; a compiler that is not named takes its own defaults.
SEARCHED: dict[str, tuple[str, tuple[Options, ...], float | None]] = {
    "lcc": ("Latent Context Compilation", (RANK,), 2e-2),
    "direct_kv": ("Cartridges' direct KV optimisation, on LCC's data and loss", ({}, {"kv_init": "even"}), 0.1),
    "attention_matching": (
        "Attention Matching, as many keys of each head and no biases",
        tuple({"matched_on": on, "matched_keys": keys} for on, keys in product(("text", "self_study"), SELECTIONS)),
        None,
    ),
    "gradmem": (
        "GradMem, the model frozen",
        ({}, *({"form": form, "write_rate": rate} for form, rate in product(("kv", "embeddings"), WRITE_RATES))),
        None,
    ),
}


def _peer(compiler: str) -> Peer:
    source, variants, start = SEARCHED.get(compiler, (f"the compiler {compiler}", ({},), None))
    by_ratio = getattr(registry.get(compiler), "by_ratio", True)
    return Peer(compiled_with(compiler), f"{source}: this package's", variants, start, by_ratio)


COMPILERS = {name: _peer(name) for name in registry.names()}
