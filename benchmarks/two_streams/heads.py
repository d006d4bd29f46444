"""Which K/V heads values are read from, when a text is repeated and when a question is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import LlamaForCausalLM

from lcc.modeling.kv import KV
from lcc.modeling.scoring import Completion, completion_states
from lcc.synthetic.people import Document, Fact
from lcc.text.chat_format import ChatFormat
from lcc.text.prompts import REPEAT_REQUEST

from .probes import value_at, wordings


@dataclass(frozen=True)
class Lookups:
    """Completions, and which of their response tokens, one behind the other, are values."""

    completions: tuple[Completion, ...]
    values: tuple[int, ...]

    @classmethod
    def repeating(cls, chat: ChatFormat, doc: Document) -> Lookups:
        lengths = [len(chat.ids(fact.sentence)) for fact in doc.facts]
        starts = [end - length for end, length in zip(accumulate(lengths), lengths, strict=True)]
        values = (start + value_at(chat, fact.sentence, fact) for start, fact in zip(starts, doc.facts, strict=True))
        return cls((_completion(chat, REPEAT_REQUEST, doc.text),), tuple(values))

    @classmethod
    def answering(cls, chat: ChatFormat, doc: Document, answer: Callable[[Fact], str]) -> Lookups:
        """One question a fact."""
        completions = tuple(_completion(chat, wordings(fact)[0], answer(fact)) for fact in doc.facts)
        starts = accumulate((len(completion.response_ids) for completion in completions), initial=0)
        values = (start + value_at(chat, answer(fact), fact) for start, fact in zip(starts, doc.facts, strict=False))
        return cls(completions, tuple(values))

    @torch.no_grad()
    def loss(self, model: LlamaForCausalLM, visible: KV) -> float:
        """Mean negative log-likelihood of the values after ``visible``, in nats."""
        rows = list(self.values)
        ids = torch.tensor([token for completion in self.completions for token in completion.response_ids])[rows]
        logits = model.lm_head(completion_states(model, visible, self.completions)[rows])
        return cross_entropy(logits, ids).item()


def _completion(chat: ChatFormat, query: str, response: str) -> Completion:
    return Completion(tuple(chat.query_ids(query)), (*chat.ids(response), chat.end))


def measure(
    model: LlamaForCausalLM, chat: ChatFormat, visible: KV, doc: Document, answer: Callable[[Fact], str]
) -> dict[str, Any]:
    """What each K/V head is worth to the values: its values are replaced by their mean over the text or the memory.

    Args:
        visible: rotated, the chat's prefix first.

    Returns:
        ``repeating`` and ``answering``: lists over layers of lists over K/V heads, nats a value that are lost without
        the head; ``shared``: the cosine between the two, losses below zero taken for zero.
    """
    kinds = {"repeating": Lookups.repeating(chat, doc), "answering": Lookups.answering(chat, doc, answer)}
    prefix = len(chat.prefix_ids)
    worth = {kind: _worth(model, prefix, visible, lookups) for kind, lookups in kinds.items()}
    both = [torch.tensor(losses).clamp(min=0).flatten() for losses in worth.values()]
    return {**worth, "shared": cosine_similarity(*both, dim=0).item()}


def unread(worth: list[list[float]], share: float = 0.02) -> list[int]:
    """The layers whose heads together are worth less than ``share`` of all."""
    layers = torch.tensor(worth).clamp(min=0).sum(1)
    return (layers < share * layers.sum()).nonzero()[:, 0].tolist()


def _worth(model: LlamaForCausalLM, prefix: int, visible: KV, lookups: Lookups) -> list[list[float]]:
    whole, (layers, heads) = lookups.loss(model, visible), visible.keys.shape[:2]
    return [
        [lookups.loss(model, _without(visible, prefix, layer, head)) - whole for head in range(heads)]
        for layer in range(layers)
    ]


def _without(visible: KV, prefix: int, layer: int, head: int) -> KV:
    """``visible`` with one head's values behind the prefix all alike."""
    values = visible.values.clone()
    of_text = values[layer, head, prefix:]
    of_text[:] = of_text.mean(0)
    return replace(visible, values=values)
