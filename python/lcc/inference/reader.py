"""``Reader``: the frozen model behind a text, a memory or nothing; and how two of them differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from ..memory.memory import Memory
from ..modeling.adapter import AdaptedModel
from ..modeling.decoding import Prompt, decode
from ..modeling.generation import batch_rows, end_tokens
from ..modeling.kv import KV
from ..modeling.prefill import prefill
from ..modeling.scoring import Completion, completion_states, token_divergence
from ..text.chat_format import ChatFormat, Query
from ..text.context import Context
from .attached import attached
from .requests import Request, answer

# Rows of logits that are held at once.
LOGIT_ROWS = 256

Response = tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """A frozen model whose queries see the rotated tokens of ``visible``.

    Attributes:
        after_text: whether ``visible`` ends in a text (or what stands for one) rather than in the chat's prefix.
        adapted: what ``model`` is a copy in, under an adapter; None for a plain model.
    """

    model: PreTrainedModel
    chat: ChatFormat
    visible: KV
    after_text: bool = True
    adapted: AdaptedModel | None = None

    @classmethod
    def of_text(cls, model: PreTrainedModel, chat: ChatFormat, text: str) -> Reader:
        """Behind the chat's prefix and ``text``; behind the prefix alone for an empty text."""
        return cls(model, chat, prefill_chat(model, chat, text), bool(text))

    @classmethod
    @torch.no_grad()
    def of_context(cls, model: PreTrainedModel, context: Context) -> Reader:
        """Behind a text that is ready to compile, as its teacher reads it."""
        return cls(model, context.chat, prefill(model, context.context_ids, context.read_prefix(model)))

    @classmethod
    def of_memory(cls, model: PreTrainedModel, chat: ChatFormat, memory: Memory) -> Reader:
        """Behind a memory, whose model is not verified."""
        with attached(model, memory, verify=False) as before:
            return cls(before.model, chat, before.visible, before.after_text, before.adapted)

    def answer(self, requests: Sequence[Request], batch: int = 32) -> list[str]:
        """Greedy answers as text; see ``lcc.inference.requests.answer``."""
        answers = answer(self.model, self.chat, self.visible, requests, batch, self.after_text)
        return [one.text for one in answers]

    def say(self, queries: Sequence[Query], max_new_tokens: int) -> Said:
        """Greedy responses, each with its end token; what goes in circles is cut off."""
        prompts = [Prompt(tuple(self.chat.query_ids(query, self.after_text))) for query in queries]
        ends = end_tokens(self.model, self.chat.end).__contains__
        decoded = dict(decode(self.model, self.visible, prompts, ends, max_new_tokens))
        ordered = [decoded[number] for number in range(len(prompts))]
        responses = [(*one.ids, self.chat.end) for one in ordered]
        return Said(self, tuple(queries), tuple(responses), torch.cat([one.states for one in ordered]))

    def said(self, queries: Sequence[Query], responses: Sequence[Response]) -> Said:
        """Given responses as this reader's own."""
        return Said(self, tuple(queries), tuple(responses), self.states(queries, responses))

    @torch.no_grad()
    def states(self, queries: Sequence[Query], responses: Sequence[Response]) -> torch.Tensor:
        """Last hidden states where the responses are predicted, teacher-forced: (tokens of all responses, H)."""
        completions = [
            Completion(tuple(self.chat.query_ids(query, self.after_text)), response)
            for query, response in zip(queries, responses, strict=True)
        ]
        rows = batch_rows(len(self.visible))
        starts = range(0, len(completions), rows)
        acting_on = (lambda _: nullcontext()) if self.adapted is None else self.adapted.acting_on
        parts = (completions[at : at + rows] for at in starts)
        return torch.cat([completion_states(self.model, self.visible, part, acting_on) for part in parts])

    def accuracy(self, queries: Sequence[Query], responses: Sequence[Response]) -> float:
        """Share of the responses' tokens that are the most probable ones, teacher-forced."""
        predicted = torch.tensor(self.said(queries, responses).choices)
        given = torch.tensor([token for response in responses for token in response])
        return (predicted == given).double().mean().item()

    def confidence(self, queries: Sequence[Query], responses: Sequence[Response]) -> list[float]:
        """Geometric mean of the probabilities of each response's tokens."""
        ids = torch.tensor([token for response in responses for token in response])
        parts = zip(self.logits(self.states(queries, responses)), ids.split(LOGIT_ROWS), strict=True)
        logs = torch.cat([x.double().log_softmax(-1).cpu().gather(1, token[:, None])[:, 0] for x, token in parts])
        return [part.mean().exp().item() for part in logs.split([len(response) for response in responses])]

    @torch.no_grad()
    def logits(self, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits of last hidden states, at most (LOGIT_ROWS, vocabulary) at a time."""
        yield from map(self.model.get_output_embeddings(), states.split(LOGIT_ROWS))


@dataclass(frozen=True)
class Said:
    """Responses, and what predicts their tokens in the reader whose they are.

    Attributes:
        states: (tokens of all responses, H), its last hidden states.
    """

    reader: Reader
    queries: tuple[Query, ...]
    responses: tuple[Response, ...]
    states: torch.Tensor

    @cached_property
    def choices(self) -> list[int]:
        """The most probable token at each token of the responses, teacher-forced."""
        return [token for logits in self.reader.logits(self.states) for token in logits.argmax(-1).tolist()]

    def again(self, reader: Reader) -> Said:
        """The same responses as those of another reader."""
        return reader.said(self.queries, self.responses)

    @torch.no_grad()
    def divergence(self, other: Said) -> torch.Tensor:
        """KL from these to the same responses of another reader at each token, (tokens of all responses,), in nats."""
        return token_divergence(self.reader.model, other.states, self.states)

    def kl(self, reader: Reader) -> float:
        """The mean of ``divergence`` over all tokens, as ``reader`` predicts them, in nats a token."""
        return self.divergence(self.again(reader)).double().mean().item()


def changed_share(reference: Sequence[Response], responses: Sequence[Response]) -> float:
    """Share of the responses that differ in any token."""
    return sum(a != b for a, b in zip(reference, responses, strict=True)) / len(reference)


@torch.no_grad()
def prefill_chat(model: PreTrainedModel, chat: ChatFormat, text: str) -> KV:
    """K and V (rotated) of the chat's prefix and ``text``: what a query about the full text sees."""
    return prefill(model, [*chat.prefix_ids, *chat.ids(text)])
