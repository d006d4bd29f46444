"""The seam of consolidation: what is made of a conversation's turns so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..modeling.kv import KV
from ..text.chat_format import ChatFormat


@dataclass(frozen=True)
class Turns:
    """A conversation between two turns.

    Attributes:
        model: frozen, in eval mode, private to this consolidation. Leave it as it came.
        visible: K and V (rotated) of all that the conversation sees: what stood there before, then the turns.
        ids: token ids of the turns that were not consolidated yet: the last ones of ``visible``.
        hidden: the last hidden state of the latest token, (H,).
    """

    model: PreTrainedModel
    chat: ChatFormat
    visible: KV
    ids: tuple[int, ...]
    hidden: torch.Tensor

    @property
    def before(self) -> KV:
        """What stood before the turns."""
        return self.visible.head(len(self.visible) - len(self.ids))


# Returns what the conversation sees from now on, in place of ``Turns.visible`` and from the same position on: fewer
# tokens where turns are evicted (``RunningMemory``), more where latents are appended (FlashMem, arXiv 2601.05505).
Consolidation = Callable[[Turns], KV]
