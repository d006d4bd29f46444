"""``TrainableMemory``: what a compiler optimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..modeling.kv import KV
from ..modeling.packed_decoder import PackedDecoder
from ..text.context import Context
from .distractors import ISOLATED, Distractors
from .settings import TrainingSettings


@dataclass(frozen=True)
class EncodeRows:
    """The encode of a text as rows that run in the same pass as the samples (see ``lcc.training.student``).

    Attributes:
        embeddings: of [C | B], (1, text tokens + buffer tokens, H), differentiable.
        text_tokens: length of C.
        copied_prefix: K and V of P', rotated.
    """

    embeddings: torch.Tensor
    text_tokens: int
    copied_prefix: KV


class TrainableMemory(ABC):
    """Parameters that give what the frozen model reads instead of a text: K and V of the buffer tokens, as a rule.

    Attributes:
        prefix: K and V of all that stands before the text, rotated: of P, as the frozen model reads it, and of a past.
        past: parameters, K and V of the past's tokens that stay, if they are trained too, keys unrotated.
        packed: runs packed rows through the model.
        adapts_queries: whatever the memory adds to the model stays on for queries and responses.
        adapts_responses: it acts where responses are predicted: on the last token of each query, and on the response.
        reads_text: the text runs through the model in every step: ``encode_rows`` and ``encode_chunked`` are there.
    """

    reads_text: ClassVar[bool] = False
    adapts_queries: bool = False
    adapts_responses: bool = False

    def __init__(self, model: PreTrainedModel, context: Context):
        self.model, self.context = model, context
        self.packed = PackedDecoder(model)
        with torch.no_grad():
            self.prefix = context.read_prefix(model)
        past = context.trained_past
        self.past = None if past is None else _parameters(past)

    @property
    def adapts_samples(self) -> bool:
        """Whether what the memory adds to the model acts on any of the samples' tokens."""
        return self.adapts_queries or self.adapts_responses

    @abstractmethod
    def parameter_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """The parameters, in groups that each have an optimiser.

        A group has ``params``, their initial ``lr``, and perhaps ``kind``: ``adamw`` (the default) or ``muon``.
        """

    def initialize(self) -> None:
        """Set the parameters' values before the first step."""
        return

    def start_from(self, start: KV) -> None:
        """Make ``encode`` give ``start``, K tokens with unrotated keys; called behind ``initialize``.

        Raises:
            InputError: this kind of memory cannot.
        """
        raise InputError(f"{type(self).__name__} cannot go on from another memory: leave start out")

    @abstractmethod
    def encode(self) -> KV:
        """K and V of B, (layers, kv_heads, K, head_dim), keys unrotated; differentiable in the parameters."""

    def all_groups(self, settings: TrainingSettings) -> list[dict[str, Any]]:
        """``parameter_groups``, and that of a past that is trained."""
        own = self.parameter_groups(settings)
        if self.past is None:
            return own
        return [*own, {"params": [self.past.keys, self.past.values], "lr": settings.past_learning_rate}]

    def behind_past(self, buffer: KV) -> KV:
        """K and V of B, with a past that is trained in front; keys unrotated."""
        if self.past is None:
            return buffer
        return buffer.after(KV(self.past.keys.to(buffer.keys.dtype), self.past.values.to(buffer.values.dtype)))

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is kept of it: by default the K and V of all that is trained as ``keys``, unrotated, and ``values``."""
        buffer = self.behind_past(self.encode())
        return {"keys": buffer.keys, "values": buffer.values}

    def encode_rows(self) -> EncodeRows | None:
        """The encode as rows of the packed pass. None: the memory has K and V only, or a past that is trained."""
        return None

    def encode_chunked(self, tokens: int) -> KV | None:
        """``encode``, with the text read ``tokens`` at a time; the gradient is the same. None: it cannot."""
        return None

    def applied(self, on: bool = True) -> AbstractContextManager[None]:
        """Switch on, inside the block, whatever the memory adds to the model."""
        return nullcontext()

    def visible(self, buffer: KV, keep_prefix: bool, distractors: Distractors = ISOLATED) -> KV:
        """What samples see, at the positions of inference: [P' | B], or B alone; B among ``distractors``."""
        memories = distractors.around(self.behind_past(buffer))
        if not keep_prefix:
            return memories.rotated(self.model, 0)
        shown = self.prefix.head(self.context.shown)
        return memories.rotated(self.model, shown.end).after(shown)


def trainable_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the parameters beside a frozen model of ``dtype``: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _parameters(kv: KV) -> KV:
    """Copies of K and V to train."""
    keys, values = (torch.nn.Parameter(t.to(trainable_dtype(t.dtype), copy=True)) for t in (kv.keys, kv.values))
    return KV(keys, values)
