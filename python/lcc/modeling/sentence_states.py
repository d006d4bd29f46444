"""Texts as vectors of the model's own hidden states, halfway up (Cartridges++ routes on layer 18 of 36)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from .kv import KV, decoder
from .model_copy import with_first_layers
from .shared_cache import SharedCache
from .window import check_window

# Tokens that are read at once, padding included.
TOKENS = 8192


class SentenceStates:
    """Reads texts with the first half of a model's layers.

    Args:
        before: rotated K and V that all texts see, such as those of the chat's prefix.
        pooling: ``mean`` over a text's tokens, or its ``last`` token.
    """

    def __init__(self, model: PreTrainedModel, before: KV, pooling: Literal["mean", "last"]):
        layers = (len(before.keys) + 1) // 2
        self._model, self._pooling = with_first_layers(model, layers), pooling
        self._before = KV(before.keys[:layers], before.values[:layers], before.start)

    @torch.no_grad()
    def of(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Each text's pooled state, normalised to length 1: (texts, H) float32 on the CPU.

        Args:
            texts: token ids, none of them empty.

        Raises:
            InputError: a text goes beyond the model's window.
        """
        width = self._model.get_input_embeddings().weight.shape[1]
        states = torch.empty(len(texts), width)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        while order:
            longest = len(texts[order[-1]])
            batch = [order.pop() for _ in range(min(len(order), max(1, TOKENS // longest)))]
            states[batch] = self._read([texts[index] for index in batch], longest)
        return states

    def _read(self, texts: Sequence[Sequence[int]], longest: int) -> torch.Tensor:
        """The same of one batch, padded on the right: causality alone keeps the padding out of sight."""
        device, start = self._model.device, self._before.end
        check_window(self._model, start + longest, "the text to find", "shorten it")
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
        positions = torch.arange(start, start + longest, device=device)
        hidden = decoder(self._model)(
            input_ids=ids, position_ids=positions[None], past_key_values=SharedCache(self._before)
        ).last_hidden_state.float()
        lengths = torch.tensor([len(text) for text in texts], device=device)
        places = torch.arange(longest, device=device)
        # The mean's weights, or those of the last token.
        seen = places < lengths[:, None] if self._pooling == "mean" else places == lengths[:, None] - 1
        return torch.nn.functional.normalize((hidden * seen[..., None]).sum(1), dim=-1).cpu()
