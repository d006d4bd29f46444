"""Direct KV optimisation: K and V of K tokens are the parameters (Cartridges, arXiv 2506.06266, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from ..modeling.kv import KV
from ..modeling.lora import frozen
from ..modeling.prefill import prefill
from ..text.context import Context
from ..training.settings import TrainingSettings
from ..training.trainable import TrainableMemory
from .base import NoSettings, TrainedCompiler
from .lora import trainable_dtype
from .registry import register


class DirectKV(TrainableMemory):
    """Starts as the K and V of the text's first K tokens. The prefix stays frozen, as the attention sink does there."""

    def __init__(self, model: PreTrainedModel, context: Context):
        super().__init__(model, context)
        with torch.no_grad():
            read = prefill(model, context.context_ids[: context.buffer], self.prefix).tail(context.buffer)
        first = read.unrotated(model)
        dtype = trainable_dtype(model.dtype)
        self.keys = torch.nn.Parameter(first.keys.to(dtype, copy=True))
        self.values = torch.nn.Parameter(first.values.to(dtype, copy=True))

    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Keys and values."""
        return [{"params": [self.keys, self.values], "lr": settings.learning_rate}]

    def encode(self) -> KV:
        """The parameters themselves, in the model's dtype."""
        return KV(self.keys.to(self.model.dtype), self.values.to(self.model.dtype))


@register
class DirectKVCompiler(TrainedCompiler):
    """Trains K and V themselves on LCC's data and loss, at the best learning rate of the fidelity study's search."""

    name = "direct_kv"
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.1}

    @contextmanager
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: NoSettings, seed: int
    ) -> Iterator[DirectKV]:
        """Fresh K and V."""
        with frozen(model):
            yield DirectKV(model, context)
