"""A LoRA that holds the text and stays in the model while questions are answered; there is no K and V of the text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lcc.compilers.lora import AdaptedMemory
from lcc.evaluation import Answers, Example, answer_examples
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill
from lcc.pipeline.settings import CompileSettings
from lcc.text.context import build_context
from lcc.utils.random_state import seeded

from .workbench import Options, PeerMethod, Workbench


class Adapter(AdaptedMemory):
    """Its "memory" is the chat's prefix, as the model with the LoRA reads it."""

    def parameter_groups(self, settings: CompileSettings) -> list[dict[str, Any]]:
        """The LoRA."""
        return [{"params": self.lora, "lr": settings.learning_rate, "kind": settings.optimizer}]

    def encode(self) -> KV:
        """K and V of P with the LoRA on, keys unrotated."""
        with self.active():
            return prefill(self.model, self.context.prefix_ids).unrotated(self.model, 0)


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
        self.settings = replace(bench.trained(options), coupled=True, keep_prefix=False)

    @abstractmethod
    def train(self, adapter: Adapter) -> Trained:
        """Teach the adapter its context."""

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer with the LoRA on, after the chat's prefix alone."""
        settings = self.settings
        prepared = build_context(self.model, self.tokenizer, context, settings.ratio, settings.max_response_tokens)
        with seeded(self.model, settings.seed), lora_model(self.model, settings) as layers:
            adapter = Adapter(self.model, prepared, layers)
            trained = self.train(adapter)
            with adapter.active(), torch.no_grad():
                visible = adapter.visible(adapter.encode(), keep_prefix=False)
            with adapter.active():
                texts = answer_examples(self.model, self.chat, visible, examples, self.batch)
        held = visible.nbytes + sum(parameter.nbytes for parameter in adapter.lora)
        return Answers(texts, held, trained.seconds, trained.questions)
