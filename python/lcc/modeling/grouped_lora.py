"""One question, several adapters: its K and V are held once, and the first token under each is found in one pass.

CDLM (arXiv 2605.28889): adapters that share the cache of a question are swapped without reading it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch

from .adapter import AdaptedModel
from .architecture import supports_sharing
from .attention import attending
from .generation import end_tokens, generate_after
from .kv import KV, decoder
from .row_cache import logits_of
from .shared_cache import SharedCache
from .shared_prefix_attention import SHARED_PREFIX


@dataclass(frozen=True)
class FirstTokens:
    """The step that predicts the first token of an answer, under each of several adapters.

    Attributes:
        question: K and V (rotated) of all that stands before the question's last token, as the plain model reads it.
        hidden: (candidates, H), last hidden states of the last token.
        adapted: the model under the adapters.
        rows: the numbers of the candidates in it.
        cache: ``question``, held once, and the last token's own K and V under each adapter.
    """

    question: KV
    hidden: torch.Tensor
    adapted: AdaptedModel
    rows: tuple[int, ...]
    cache: SharedCache

    @cached_property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """(candidates, vocabulary) in the dtype of the model's head."""
        return logits_of(self.adapted.model, self.hidden)

    def go_on(self, candidate: int, end: int, max_new_tokens: int) -> list[int]:
        """The greedy answer under one of the candidates, from the same question and the step that is done.

        Args:
            candidate: its place in ``rows``.
            end: the chat's end-of-response token; the model's own end tokens end an answer too.

        Returns:
            New token ids, cut at the first end token.

        Raises:
            InputError: as ``generate_after``.
        """
        model, first = self.adapted.model, int(self.logits[candidate].argmax())
        if first in end_tokens(model, end):
            return []
        if max_new_tokens == 1:
            return [first]
        cache = SharedCache(self.question)
        for layer, read in zip(cache.layers, self.cache.layers, strict=True):
            layer.update(*(states.own[candidate : candidate + 1] for states in read.split()))
        with self.adapted.choosing([self.rows[candidate]]):
            (rest,) = generate_after(model, cache, [[first]], end, max_new_tokens=max_new_tokens - 1)
        return [first, *rest]


@torch.no_grad()
def first_tokens(
    adapted: AdaptedModel, question: KV, last_token: int, rows: Sequence[int] | None = None
) -> FirstTokens:
    """Read a question's last token under several adapters, all in one pass.

    Args:
        adapted: the model under a bank's adapters; it serves any number of questions.
        question: K and V (rotated) of the chat's prefix and the question without its last token, which ``prefill`` of
            the plain model gives. They are read, never written or copied where the model's attention can share.
        last_token: the question's last token id.
        rows: numbers of the adapters to read it under; None: all.
    """
    rows, model = list(range(adapted.adapters) if rows is None else rows), adapted.model
    cache = SharedCache(question).follow(model)
    with adapted.choosing(rows), attending(model, SHARED_PREFIX) if supports_sharing(model) else nullcontext():
        hidden = decoder(model)(
            input_ids=torch.full((len(rows), 1), last_token, device=model.device),
            position_ids=torch.full((len(rows), 1), question.end, device=model.device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return FirstTokens(question, hidden, adapted, tuple(rows), cache)
