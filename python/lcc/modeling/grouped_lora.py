"""One question, several adapters: its K and V are held once, and the first token under each is found in one pass.

CDLM (arXiv 2605.28889): adapters that share the cache of a question are swapped without reading it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .adapter import AdaptedModel, Adapter
from .architecture import supports_sharing
from .attention import attending
from .generation import end_tokens, generate_after
from .kv import KV, decoder
from .shared_cache import SharedCache
from .shared_prefix_attention import SHARED_PREFIX


@dataclass(frozen=True)
class FirstTokens:
    """The step that predicts the first token of an answer, under each of several adapters.

    Attributes:
        question: K and V (rotated) of all that stands before the question's last token, as the plain model reads it.
        hidden: (adapters, H), last hidden states of the last token.
        adapted: the model under the adapters.
        cache: ``question``, held once, and the last token's own K and V under each adapter.
    """

    question: KV
    hidden: torch.Tensor
    adapted: AdaptedModel
    cache: SharedCache

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """(adapters, vocabulary)."""
        head = self.adapted.model.get_output_embeddings()
        return head(self.hidden.to(head.weight.dtype))

    def go_on(self, adapter: int, end: int, max_new_tokens: int) -> list[int]:
        """The greedy answer under one of the adapters, from the same question and the step that is done.

        Args:
            adapter: its number.
            end: the chat's end-of-response token; the model's own end tokens end an answer too.

        Returns:
            New token ids, cut at the first end token.

        Raises:
            InputError: as ``generate_after``.
        """
        model, first = self.adapted.model, int(self.logits()[adapter].argmax())
        if first in end_tokens(model, end):
            return []
        if max_new_tokens == 1:
            return [first]
        cache = SharedCache(self.question)
        for layer, read in zip(cache.layers, self.cache.layers, strict=True):
            layer.update(*(states.own[adapter : adapter + 1] for states in read.split()))
        with self.adapted.choosing([adapter]):
            (rest,) = generate_after(model, cache, [[first]], end, max_new_tokens=max_new_tokens - 1)
        return [first, *rest]


@torch.no_grad()
def first_tokens(
    model: PreTrainedModel, question: KV, last_token: int, adapters: Sequence[Adapter | None]
) -> FirstTokens:
    """Read a question's last token under each adapter, all in one pass.

    Args:
        question: K and V (rotated) of the chat's prefix and the question without its last token, which ``prefill`` of
            the plain model gives. They are read, never written or copied where the model's attention can share.
        last_token: the question's last token id.
        adapters: None is the plain model, to which zeros are added.

    Raises:
        InputError: as ``AdaptedModel``.
        MismatchError: as ``AdaptedModel``.
    """
    adapted = AdaptedModel(model, adapters)
    cache = SharedCache(question).follow(adapted.model)
    rows, device = len(adapters), adapted.model.device
    with attending(adapted.model, SHARED_PREFIX) if supports_sharing(model) else nullcontext():
        hidden = decoder(adapted.model)(
            input_ids=torch.full((rows, 1), last_token, device=device),
            position_ids=torch.full((rows, 1), question.end, device=device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return FirstTokens(question, hidden, adapted, cache)
