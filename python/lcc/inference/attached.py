"""``attached``: the one way to put memories before a model, whatever their payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from transformers import Cache, PreTrainedModel

from ..memory.attachment import attach, cached_tokens
from ..memory.memory import Memory
from ..modeling.kv import KV


@dataclass(frozen=True)
class Attached:
    """Memories before a model.

    Attributes:
        cache: holds the prefix and the memories; grows with what is generated.
        tokens: how many tokens it held at first.
        start: position of the first of them.
    """

    cache: Cache
    tokens: int
    start: int

    @cached_property
    def visible(self) -> KV:
        """K and V of the prefix and the memories, rotated: what questions see."""
        return KV.of(self.cache, self.start).head(self.tokens)


@contextmanager
def attached(
    model: PreTrainedModel, memory: Memory | Sequence[Memory], start: int = 0, verify: bool = True
) -> Iterator[Attached]:
    """The memories before ``model`` inside the block; see ``lcc.attach`` for the arguments and what is raised."""
    cache = attach(model, memory, start, verify=verify)
    yield Attached(cache, cached_tokens(memory), start)
