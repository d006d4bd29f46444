"""Latent Context Compilation: a disposable LoRA compiles the text into buffer tokens (LCC sections 3.2-3.5)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from ..modeling.chunked_prefill import prefill_in_chunks
from ..modeling.kv import KV, decoder
from ..modeling.lora import LoraSwitch, lora_model
from ..modeling.shared_cache import SharedCache
from ..text.context import Context
from ..training.settings import TrainingSettings
from ..training.trainable import EncodeRows, TrainableMemory, trainable_dtype
from ..utils.settings import SettingsGroup
from .base import TrainedCompiler
from .registry import register


@dataclass(frozen=True)
class LoraSettings(SettingsGroup):
    """Settings of the LoRA and the buffer embeddings.

    Attributes:
        rank, alpha: of the LoRA.
        targets: names of the linear layers that the LoRA adapts. None: every attention projection.
        optimizer: of the LoRA, ``muon`` or ``adamw``. The buffer embeddings always have AdamW.
        buffer_learning_rate: of the buffer embeddings; falls linearly to zero.
        buffer_init: where the buffer embeddings start. ``vocabulary``: all at the mean of the vocabulary's embeddings
            (LCC appendix A). ``even`` and ``sampled``: at the embeddings of K tokens of the text, evenly spaced or
            drawn at random, in the text's order. The LoRA starts at zero, so such a buffer token has K and V near those
            of its text token.
        coupled: the LoRA stays on for queries and responses while training (the paper's ablation).
    """

    rank: int = 64
    alpha: float = 64.0
    targets: tuple[str, ...] | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    buffer_learning_rate: float = 3e-2
    buffer_init: Literal["vocabulary", "sampled", "even"] = "even"
    coupled: bool = False

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_count("rank")
        self.require_more_than(0, "alpha")
        self.require_not_negative("buffer_learning_rate")


class AdaptedMemory(TrainableMemory):
    """A trainable memory with a LoRA inside the model, which is off unless ``applied()``.

    Args:
        layers: the adapted layers, as ``lora_model`` yields them.
    """

    def __init__(self, model: PreTrainedModel, context: Context, layers: list[BaseTunerLayer]):
        self._switch = LoraSwitch(layers)
        self.lora = self._switch.parameters
        super().__init__(model, context)

    def applied(self, on: bool = True) -> AbstractContextManager[None]:
        """Switch the LoRA on inside the block."""
        return self._switch.applied(on)


class LoraMemory(AdaptedMemory):
    """The LoRA and the buffer embeddings (LCC section 3.3)."""

    reads_text = True

    def __init__(
        self,
        model: PreTrainedModel,
        context: Context,
        layers: list[BaseTunerLayer],
        settings: LoraSettings | None = None,
        seed: int = 0,
    ):
        super().__init__(model, context, layers)
        self.settings, self.seed = settings or LoraSettings(), seed
        self.adapts_queries = self.settings.coupled
        embeddings = model.get_input_embeddings().weight
        mean = embeddings.detach().float().mean(0).to(trainable_dtype(embeddings.dtype))
        self.buffer = torch.nn.Parameter(mean.expand(context.buffer, -1).clone())
        self._offset: KV | None = None
        self._shares = [part.buffer for part in context.parts]
        with torch.no_grad():
            ids = [torch.tensor([part.context_ids], device=embeddings.device) for part in context.parts]
            self._context_embeddings = [model.get_input_embeddings()(of_part) for of_part in ids]

    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """Buffer embeddings and LoRA, each with its own learning rate."""
        return [
            {"params": [self.buffer], "lr": self.settings.buffer_learning_rate},
            {"params": self.lora, "lr": settings.learning_rate, "kind": self.settings.optimizer},
        ]

    def initialize(self) -> None:
        """Put the buffer embeddings where ``buffer_init`` says."""
        if self.settings.buffer_init == "vocabulary":
            return
        rng = random.Random(self.seed)
        chosen = [part.context_ids[place] for part in self.context.parts for place in self._places(part, rng)]
        with torch.no_grad():
            embeddings = self.model.get_input_embeddings().weight
            ids = torch.tensor(chosen, device=embeddings.device)
            self.buffer.copy_(embeddings[ids].to(self.buffer.dtype))

    def _places(self, part: Context, rng: random.Random) -> list[int]:
        """The tokens of the text that its buffer embeddings start at."""
        tokens, count = len(part.context_ids), part.buffer
        if self.settings.buffer_init == "sampled":
            return sorted(rng.sample(range(tokens), count))
        return [(2 * index + 1) * tokens // (2 * count) for index in range(count)]

    def start_from(self, start: KV) -> None:
        """Add to every encode what ``start`` is away from the first one."""
        with torch.no_grad():
            first = self.encode()
        self._offset = KV(start.keys - first.keys, start.values - first.values)

    @cached_property
    def _copied_prefix(self) -> KV:
        """K and V of P': those of P, moved by as many positions as the text has tokens (identity 7)."""
        return self.prefix.moved(self.model, len(self.context.context_ids))

    def _embeddings(self) -> list[torch.Tensor]:
        """Embeddings of [C | B] of each part of the text, (1, text tokens + buffer tokens, H)."""
        buffers = self.buffer[None].split(self._shares, 1)
        texts = self._context_embeddings
        return [torch.cat((text, own.to(text.dtype)), 1) for text, own in zip(texts, buffers, strict=True)]

    def encode(self) -> KV:
        """K and V of B, (layers, kv_heads, K, head_dim), keys unrotated; differentiable in LoRA and buffers.

        Sections are read one by one, and once more in the backward: what a step holds is that of one section.
        """
        if self.context.sections:
            return self.encode_chunked(max(len(part.context_ids) for part in self.context.parts))
        start = len(self.prefix)
        (inputs,) = self._embeddings()
        positions = torch.arange(start, start + inputs.shape[1], device=inputs.device)
        cache = SharedCache(self.prefix)
        with self.applied():
            decoder(self.model)(inputs_embeds=inputs, position_ids=positions[None], past_key_values=cache)
        return self._moved(cache.kv().tail(self.context.buffer).unrotated(self.model))

    def _moved(self, buffer: KV) -> KV:
        """``buffer`` as far from the first encode as before, and that much from the start."""
        if self._offset is None:
            return buffer
        return KV(buffer.keys + self._offset.keys, buffer.values + self._offset.values)

    def encode_rows(self) -> EncodeRows | None:
        """[C | B] as rows of the packed pass.

        None behind a start, for what is added to K and V has no rows; nor have sections, which are read one by one, and
        a past that is trained.
        """
        if self._offset is not None or self.context.sections or self.past is not None:
            return None
        (embeddings,) = self._embeddings()
        return EncodeRows(embeddings, len(self.context.context_ids), self._copied_prefix)

    def encode_chunked(self, tokens: int) -> KV:
        """``encode``, with the text read ``tokens`` at a time (see ``prefill_in_chunks``); the gradient is the same."""

        def of_part(embeddings: torch.Tensor, buffer: int) -> KV:
            text, own = embeddings.split((embeddings.shape[1] - buffer, buffer), 1)
            chunks = [*text.split(tokens, 1), own]
            return prefill_in_chunks(self.model, chunks, self.prefix, self.applied).unrotated(self.model)

        rows = [of_part(inputs, own) for inputs, own in zip(self._embeddings(), self._shares, strict=True)]
        return self._moved(KV.in_a_row(rows))


@register
class LoraCompiler(TrainedCompiler):
    """LCC: the LoRA is on for text and buffer tokens, off for queries and responses, and thrown away at the end."""

    name = "lcc"
    Settings = LoraSettings

    @contextmanager
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: LoraSettings, seed: int
    ) -> Iterator[LoraMemory]:
        """A fresh LoRA and fresh buffer embeddings."""
        with lora_model(model, settings.rank, settings.alpha, settings.targets) as layers:
            yield LoraMemory(model, context, layers, settings, seed)
