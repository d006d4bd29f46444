"""CDLM's adapters: a LoRA for each text, by context distillation that shares a query's cache (arXiv 2605.28889)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from ..data.samples import DistillationData, Sample
from ..errors import InputError
from ..memory.payload import AdapterPayload
from ..modeling.adapter import Adapter, adaptable_layers
from ..modeling.kv import KV
from ..modeling.lora import layer_projections, lora_model
from ..modeling.prefill import prefill
from ..text.context import Context
from ..training.distractors import ISOLATED, Distractors
from ..training.settings import TrainingSettings
from ..utils.settings import SettingsGroup
from .base import Compiled, CompileTask, TrainedCompiler
from .lora import AdaptedMemory
from .registry import register


@dataclass(frozen=True)
class AdapterSettings(SettingsGroup):
    """Settings of the LoRA that is kept.

    Attributes:
        rank, alpha: of the LoRA. The paper has 64 and 128.
        targets: names of the linear layers that it adapts. None: every one of attention and MLP.
        optimizer: ``muon`` or ``adamw``.
        cache_sharing: the LoRA acts on responses alone, from the last token of a query on, so that the K and V of a
            query are the plain model's and serve every adapter (equation 3). False is plain context distillation, whose
            LoRA acts on prefix and query too.
    """

    rank: int = 64
    alpha: float = 128.0
    targets: tuple[str, ...] | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    cache_sharing: bool = True

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_count("rank")
        self.require_more_than(0, "alpha")


class AdapterMemory(AdaptedMemory):
    """The LoRA. There are no buffer tokens: the model reads the chat's prefix and the query.

    Raises:
        InputError: the LoRA is on another layer than a linear one of the decoder.
    """

    def __init__(
        self, model: PreTrainedModel, context: Context, layers: list[BaseTunerLayer], settings: AdapterSettings
    ):
        super().__init__(model, context, layers)
        self.settings, adapted, known = settings, {id(layer) for layer in layers}, adaptable_layers(model)
        self._layers = [(name, module) for name, module in model.named_modules() if id(module) in adapted]
        if outside := [name for name, _ in self._layers if name not in known]:
            raise InputError(f"targets name {outside[0]}, which is no linear layer of the decoder: leave it out")
        self.adapts_responses, self.adapts_queries = settings.cache_sharing, not settings.cache_sharing

    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """The LoRA."""
        return [{"params": self.lora, "lr": settings.learning_rate, "kind": self.settings.optimizer}]

    def encode(self) -> KV:
        """No tokens."""
        nothing = self.prefix.head(0)
        return KV(nothing.keys, nothing.values)

    def visible(self, buffer: KV, keep_prefix: bool, distractors: Distractors = ISOLATED) -> KV:
        """P, as the model reads it: with the LoRA on, if that acts on queries."""
        if not self.adapts_queries:
            return self.prefix
        with self.applied():
            return prefill(self.model, self.context.prefix_ids)

    def tensors(self) -> dict[str, torch.Tensor]:
        """A and B of every layer, under the names of ``AdapterPayload``."""
        down = {name: a.detach().clone() for name, (a, _) in self.matrices().items()}
        up = {name: b.detach().clone() for name, (_, b) in self.matrices().items()}
        return AdapterPayload(Adapter(down, up, self.settings.alpha)).tensors()

    def matrices(self) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
        """A (rank, in) and B (out, rank) by the names of their layers."""
        return {name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for name, layer in self._layers}


@register
class AdapterCompiler(TrainedCompiler):
    """Trains a LoRA to answer without the text as the model answers with it, on LCC's data and loss.

    The reconstruction is left out by default, as in the paper: with it a step takes half as long again.
    """

    name = "adapter"
    Settings = AdapterSettings
    defaults: ClassVar[Mapping[str, Any]] = {"reconstruction_weight": 0.0, "learning_rate": 1e-2}
    goes_on: ClassVar[bool] = False
    among: ClassVar[bool] = False
    by_ratio: ClassVar[bool] = False
    in_sections: ClassVar[bool] = False

    @contextmanager
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: AdapterSettings, seed: int
    ) -> Iterator[AdapterMemory]:
        """A fresh LoRA."""
        targets = settings.targets or layer_projections(model)
        with lora_model(model, settings.rank, settings.alpha, targets) as layers:
            yield AdapterMemory(model, context, layers, settings)

    def data(self, task: CompileTask) -> DistillationData:
        """The task's, with queries that no text stands before."""
        return without_text(task.data(), task.context)

    def payload(self, tensors: dict[str, torch.Tensor], settings: AdapterSettings) -> AdapterPayload:
        """The LoRA."""
        return AdapterPayload.from_tensors(tensors, settings.alpha, settings.cache_sharing)

    def compile(self, task: CompileTask) -> Compiled:
        """Train the LoRA; see ``TrainedCompiler.compile``.

        Raises:
            InputError: ``keep_prefix`` is off: an adapter's queries stand behind the chat's prefix.
        """
        if not task.training.keep_prefix:
            raise InputError("an adapter's queries stand behind the chat's prefix: leave keep_prefix out")
        return super().compile(task)


def without_text(data: DistillationData, context: Context) -> DistillationData:
    """The data with queries as they are asked where no text stands before them; the responses stay the teacher's."""

    def asked(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        ids = context.chat.query_ids
        return tuple(replace(each, query_ids=tuple(ids(each.query, after_text=False))) for each in samples)

    return replace(
        data, reconstruction=asked(data.reconstruction), train=asked(data.train), held_out=asked(data.held_out)
    )
