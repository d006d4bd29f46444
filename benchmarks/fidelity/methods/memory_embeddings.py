"""Memory-embedding optimisation: K input embeddings are the parameters (GradMem, arXiv 2603.13875, its inner loop).

GradMem meta-trains the model and the start of the memory for this loop; neither is done here: the model is the frozen
one and the memory starts as embeddings of the text's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from lcc.compilers.base import NoSettings, TrainedCompiler
from lcc.compilers.lora import trainable_dtype
from lcc.compilers.registry import register
from lcc.modeling.kv import KV, decoder
from lcc.modeling.lora import frozen
from lcc.modeling.shared_cache import SharedCache
from lcc.text.context import Context
from lcc.training.settings import TrainingSettings
from lcc.training.trainable import TrainableMemory


class MemoryEmbeddings(TrainableMemory):
    """[P | B] through the frozen model, where B's embeddings start as every n/K-th token of the text."""

    def __init__(self, model: PreTrainedModel, context: Context):
        super().__init__(model, context)
        ids = torch.tensor(context.context_ids, device=model.device)
        spread = ids[torch.arange(context.buffer) * len(ids) // context.buffer]
        embeddings = model.get_input_embeddings()(spread).detach()
        self.buffer = torch.nn.Parameter(embeddings.to(trainable_dtype(model.dtype), copy=True))

    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """The embeddings."""
        return [{"params": [self.buffer], "lr": settings.learning_rate}]

    def encode(self) -> KV:
        """K and V of B after P, keys unrotated."""
        start = len(self.prefix)
        positions = torch.arange(start, start + len(self.buffer), device=self.buffer.device)
        cache = SharedCache(self.prefix)
        inputs = self.buffer[None].to(self.model.dtype)
        decoder(self.model)(inputs_embeds=inputs, position_ids=positions[None], past_key_values=cache)
        return cache.kv().tail(len(self.buffer)).unrotated(self.model)


@register
class MemoryEmbeddingsCompiler(TrainedCompiler):
    """Trains the embeddings on LCC's data and loss."""

    name = "memory_embeddings"

    @contextmanager
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: NoSettings, seed: int
    ) -> Iterator[MemoryEmbeddings]:
        """Fresh embeddings."""
        with frozen(model):
            yield MemoryEmbeddings(model, context)
