"""Direct KV optimisation: K and V of K tokens are the parameters (Cartridges, arXiv 2506.06266, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from transformers import PreTrainedModel

from ..modeling.kv import KV
from ..modeling.lora import frozen
from ..modeling.prefill import prefill
from ..text.context import Context
from ..training.settings import TrainingSettings
from ..training.trainable import TrainableMemory, trainable_dtype
from ..utils.settings import SettingsGroup
from .base import TrainedCompiler
from .registry import register


@dataclass(frozen=True)
class DirectKVSettings(SettingsGroup):
    """Settings of direct KV optimisation.

    Attributes:
        kv_init: the K and V that the memory starts as, where it does not go on from another one: those of the text's
            ``first`` tokens, or of tokens in ``even`` distances, which have seen all that stands before them.
        freeze_first: keep the first token of the memory as it starts.
    """

    kv_init: Literal["first", "even"] = "first"
    freeze_first: bool = False


DEFAULT = DirectKVSettings()


class DirectKV(TrainableMemory):
    """K and V of K tokens, which are those of tokens of the text at first.

    The prefix stays frozen, as the attention sink does in the paper.
    """

    def __init__(self, model: PreTrainedModel, context: Context, settings: DirectKVSettings = DEFAULT):
        super().__init__(model, context)
        self.frozen = int(settings.freeze_first)
        with torch.no_grad():
            first = [_of_text(model, part, self.prefix, settings.kv_init) for part in context.parts]
        self._set(KV.in_a_row(first))

    def _set(self, start: KV) -> None:
        dtype = trainable_dtype(self.model.dtype)
        self.held = KV(start.keys[:, :, : self.frozen].to(dtype), start.values[:, :, : self.frozen].to(dtype))
        self.keys = torch.nn.Parameter(start.keys[:, :, self.frozen :].to(dtype, copy=True))
        self.values = torch.nn.Parameter(start.values[:, :, self.frozen :].to(dtype, copy=True))

    def start_from(self, start: KV) -> None:
        """Take its keys and values."""
        self._set(start)

    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Keys and values."""
        return [{"params": [self.keys, self.values], "lr": settings.learning_rate}]

    def encode(self) -> KV:
        """The parameters themselves, in the model's dtype."""
        keys, values = torch.cat((self.held.keys, self.keys), 2), torch.cat((self.held.values, self.values), 2)
        return KV(keys.to(self.model.dtype), values.to(self.model.dtype))


def _of_text(model: PreTrainedModel, context: Context, prefix: KV, init: str) -> KV:
    """K and V of K tokens of the text, keys unrotated."""
    ids, count = context.context_ids, context.buffer
    if init == "first":
        return prefill(model, ids[:count], prefix).tail(count).unrotated(model)
    text = prefill(model, ids, prefix).tail(len(ids)).unrotated(model)
    return text.select([(2 * place + 1) * len(ids) // (2 * count) for place in range(count)])


@register
class DirectKVCompiler(TrainedCompiler):
    """Trains K and V themselves on LCC's data and loss, at the best learning rate of the fidelity study's search."""

    name = "direct_kv"
    Settings = DirectKVSettings
    defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.1}

    @contextmanager
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: DirectKVSettings, seed: int
    ) -> Iterator[DirectKV]:
        """Fresh K and V."""
        with frozen(model):
            yield DirectKV(model, context, settings)
