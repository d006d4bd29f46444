"""A LoRA that holds the text and stays in the model while questions are answered; there is no K and V of the text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from lcc.compilers.lora import AdaptedMemory, LoraSettings
from lcc.inference.reader import Reader
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill
from lcc.text.context import Context
from lcc.training.settings import TrainingSettings
from lcc.utils.random_state import seeded

from .workbench import Held, Options, PeerMethod, Workbench


class Adapter(AdaptedMemory):
    """Its "memory" is the chat's prefix, as the model with the LoRA reads it. The LoRA is on for queries too."""

    adapts_queries = True

    def __init__(
        self,
        model: PreTrainedModel,
        context: Context,
        layers: list[BaseTunerLayer],
        settings: LoraSettings | None = None,
    ):
        super().__init__(model, context, layers)
        self.settings = settings or LoraSettings()

    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """The LoRA."""
        return [{"params": self.lora, "lr": settings.learning_rate, "kind": self.settings.optimizer}]

    def encode(self) -> KV:
        """K and V of P with the LoRA on, keys unrotated."""
        with self.applied():
            return prefill(self.model, self.context.prefix_ids).unrotated(self.model)


@dataclass(frozen=True)
class Trained:
    """Seconds of optimisation, and the questions that the model asked itself for it."""

    seconds: float
    questions: frozenset[str] = frozenset()


class AdapterMethod(PeerMethod):
    """Trains an ``Adapter`` on each text and answers with it switched on."""

    def __init__(self, name: str, bench: Workbench, options: Options):
        super().__init__(name, bench, options)
        # The LoRA is on for queries and responses, and what they see is all in ``Adapter.encode``.
        self.settings = bench.settings_for({**options, "coupled": True, "keep_prefix": False})
        self.lora: LoraSettings = self.settings.compiler

    @abstractmethod
    def train(self, adapter: Adapter) -> Trained:
        """Teach the adapter its context."""

    @contextmanager
    def holding(self, text: str) -> Iterator[Held]:
        """The chat's prefix, with the LoRA on."""
        prepared, lora = self.context_of(text), self.lora
        with (
            seeded(self.model.device, self.settings.seed),
            lora_model(self.model, lora.rank, lora.alpha, lora.targets) as layers,
        ):
            adapter = Adapter(self.model, prepared, layers, lora)
            trained = self.train(adapter)
            with adapter.applied(), torch.no_grad():
                visible = adapter.visible(adapter.encode(), keep_prefix=False)
            nbytes = visible.nbytes + sum(parameter.nbytes for parameter in adapter.lora)
            with adapter.applied():
                reader = Reader(self.model, self.chat, visible)
                yield Held(reader, nbytes, trained.seconds, trained.questions, self.batch)
