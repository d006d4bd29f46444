"""The seam of consolidation: what is made of a conversation's turns so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..modeling.kv import KV, decoder
from ..modeling.shared_cache import SharedCache
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
# tokens where turns are evicted (``RunningMemory``), more where latents are appended (``Appended``).
Consolidation = Callable[[Turns], KV]
# Is given the model, K and V (rotated) of all that was read, and the last hidden state, (H,); returns latents as input
# embeddings, (n, H).
Latents = Callable[[PreTrainedModel, KV, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Appended:
    """A ``Consolidation`` that appends latents and evicts nothing, as FlashMem does (arXiv 2601.05505).

    The model reads the latents behind all that it has read, and their own K and V stay.

    Attributes:
        latents: writes them.
    """

    latents: Latents

    @torch.no_grad()
    def __call__(self, turns: Turns) -> KV:
        """All that was visible, and the latents behind it."""
        model, end = turns.model, turns.visible.end
        embeddings = self.latents(model, turns.visible, turns.hidden)
        cache = SharedCache(turns.visible)
        positions = torch.arange(end, end + len(embeddings), device=embeddings.device)
        decoder(model)(inputs_embeds=embeddings[None], position_ids=positions[None], past_key_values=cache)
        return cache.kv()
