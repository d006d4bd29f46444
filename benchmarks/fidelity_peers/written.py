"""Memories by ``lcc.compile`` with one writer or another: the same surrogate data, loss, steps and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from lcc.compilers.lora import WriterFactory, lora_compiler
from lcc.evaluation import CompiledMemory
from lcc.modeling.lora import frozen
from lcc.pipeline.settings import CompileSettings
from lcc.text.context import Context
from lcc.training.trainable import TrainableMemory

from .workbench import Options, Peer, Workbench


def alone(make: Callable[[PreTrainedModel, Context], TrainableMemory], name: str) -> WriterFactory:
    """The factory of a writer that adds nothing to the model; ``name`` is what checkpoints know it by."""

    @contextmanager
    def factory(model: PreTrainedModel, context: Context, settings: CompileSettings) -> Iterator[TrainableMemory]:
        with frozen(model):
            yield make(model, context)

    factory.__name__ = name
    return factory


def compiled_with(writer: WriterFactory) -> Callable[[str, Workbench, Options], CompiledMemory]:
    """Builds the method whose memories ``writer`` writes."""

    def build(name: str, bench: Workbench, options: Options) -> CompiledMemory:
        return CompiledMemory(
            bench.model,
            bench.tokenizer,
            bench.folder / "memories",
            bench.trained(options),
            name=name,
            writer=writer,
            surrogates=bench.surrogates,
        )

    return build


# A compiler's rank costs nothing once it is thrown away. That of a LoRA which stays costs bytes.
RANK: Options = {"rank": 64, "alpha": 64.0}
LCC = Peer(compiled_with(lora_compiler), "Latent Context Compilation, this package's writer", (RANK,), start=2e-2)
