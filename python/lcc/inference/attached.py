"""``attached``: the one way to put memories before a model, whatever their payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import Cache, PreTrainedModel

from ..memory.attachable import check_adapted
from ..memory.attachment import attach, cached_tokens, stack_of
from ..memory.memory import Memory
from ..memory.payload import AdapterPayload
from ..modeling.adapter import AdaptedModel
from ..modeling.kv import KV
from ..modeling.prefill import prefill
from ..modeling.shared_cache import SharedCache
from ..modeling.wrappers import plain_model


@dataclass(frozen=True)
class Attached:
    """Memories before a model.

    Attributes:
        model: what reads questions behind them: the model itself, or a copy of it under an adapter.
        cache: holds the prefix and the memories; grows with what is generated.
        tokens: how many tokens it held at first.
        start: position of the first of them.
        adapted: the copy under an adapter; None for K and V.
    """

    model: PreTrainedModel
    cache: Cache
    tokens: int
    start: int
    adapted: AdaptedModel | None = None

    @property
    def after_text(self) -> bool:
        """Whether what stands for a text is in the cache; before the questions of an adapter there is none."""
        return self.adapted is None

    @property
    def nbytes(self) -> int:
        """Bytes of the K and V that questions see, and of the adapter."""
        return self.visible.nbytes + (0 if self.adapted is None else self.adapted.nbytes)

    @cached_property
    def visible(self) -> KV:
        """K and V of the prefix and the memories, rotated: what questions see."""
        return KV.of(self.cache, self.start).head(self.tokens)


@contextmanager
def attached(
    model: PreTrainedModel, memory: Memory | Sequence[Memory], start: int = 0, verify: bool = True
) -> Iterator[Attached]:
    """The memories before ``model`` inside the block; see ``lcc.attach`` for the arguments and what is raised.

    An adapter is read alone. It is in a copy of the model: the model is left as it is.
    """
    memories = stack_of(memory)
    payload = memories[0].payload
    if len(memories) == 1 and isinstance(payload, AdapterPayload):
        yield _adapted(model, memories[0], payload, start, verify)
    else:
        cache = attach(model, memories, start, verify=verify)
        yield Attached(plain_model(model), cache, cached_tokens(memories), start)


@torch.no_grad()
def _adapted(model: PreTrainedModel, memory: Memory, payload: AdapterPayload, start: int, verify: bool) -> Attached:
    """The chat's prefix, and the model under the memory's adapter."""
    model = plain_model(model)
    check_adapted(model, memory, start)
    if verify:
        memory.verify(model)
    adapted = AdaptedModel(model, [payload.to(model.device, model.dtype).adapter])
    reading = model if payload.adapter.cache_sharing else adapted.model
    cache = SharedCache(prefill(reading, memory.prefix_ids, start=start)).follow(adapted.model)
    return Attached(adapted.model, cache, len(memory.prefix_ids), start, adapted)
