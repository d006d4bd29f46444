"""Ways of holding a context while questions are answered: the full text, nothing, and a memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.attached import attached
from ..inference.reader import Reader
from ..inference.requests import answer, check_requests_fit
from ..memory.memory import Memory
from ..modeling.fingerprint import fingerprint
from ..modeling.kv import KV
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat, Query, turns_of
from .examples import Example


@dataclass(frozen=True)
class Answers:
    """What a method makes of one context.

    Attributes:
        texts: one answer an example, in their order.
        kv_bytes: of the cache that a question finds, prefix included; and of an adapter, if there is one.
        seconds: spent on the context before the first question.
        trained_on: questions that the method asked itself while it prepared.
    """

    texts: list[str]
    kv_bytes: int
    seconds: float
    trained_on: frozenset[str] = frozenset()


class Method(Protocol):
    """Anything that answers questions about a context; it leaves the model as it found it."""

    @property
    def name(self) -> str:
        """How its results are labelled."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """All that its answers depend on beside the examples, JSON-ready: only where it is equal are they reused."""
        ...

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer ``examples``, which are all about (or beside) ``context``."""
        ...


class ReadingMethod:
    """A method whose questions see K and V alone.

    Raises:
        InputError: an adapter in the model is active.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 32):
        self.model, self.tokenizer, self.batch = plain_model(model), tokenizer, batch

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's and the tokenizer's digests."""
        return dict(fingerprint(self.model, self.tokenizer))


class FullText(ReadingMethod):
    """The upper bound: the context is read before every question."""

    name = "full_text"

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer with the whole context in sight.

        Raises:
            InputError: the context is beyond the model's window.
        """
        chat = ChatFormat.of(self.tokenizer)
        check_examples_fit(self.model, chat, len(chat.prefix_ids) + len(chat.ids(context)), examples)
        began = time.monotonic()
        reader = Reader.of_text(self.model, chat, context)
        seconds = time.monotonic() - began
        texts = reader.answer([example.request for example in examples], self.batch)
        return Answers(texts, reader.visible.nbytes, seconds)


class NoText(ReadingMethod):
    """The lower bound: the chat's prefix and the question."""

    name = "no_text"

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer without the context."""
        reader = Reader.of_text(self.model, ChatFormat.of(self.tokenizer), "")
        texts = reader.answer([example.request for example in examples], self.batch)
        return Answers(texts, reader.visible.nbytes, 0.0)


class MemoryMethod(ReadingMethod):
    """A memory of each context.

    Args:
        make: gives the memory of a context.
        identity: all that the memories depend on beside the context, JSON-ready.
        name: how its results are labelled.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        make: Callable[[str], Memory],
        identity: dict[str, Any],
        name: str = "memory",
        batch: int = 32,
    ):
        super().__init__(model, tokenizer, batch)
        self.make, self.name, self._identity = make, name, identity

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's and tokenizer's digests, and what the memories depend on."""
        return super().identity | self._identity

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer from the memory alone.

        Raises:
            MismatchError: the memory is another model's.
            Any error of ``make``.
        """
        memory = self.make(context)
        chat = ChatFormat.of(self.tokenizer, date=memory.date)
        with attached(self.model, memory) as before:
            texts = answer_examples(before.model, chat, before.visible, examples, self.batch, before.after_text)
            seconds = memory.curve[-1]["seconds"] if memory.curve else 0.0
            return Answers(texts, before.nbytes, seconds, last_questions(memory.questions))


def last_questions(queries: Iterable[Query]) -> frozenset[str]:
    """The questions in which queries end."""
    return frozenset(turns_of(query)[-1] for query in queries)


def answer_examples(
    model: PreTrainedModel,
    chat: ChatFormat,
    visible: KV,
    examples: Sequence[Example],
    batch: int = 32,
    after_text: bool = True,
) -> list[str]:
    """Greedy answers to ``examples``, each after the rotated tokens of ``visible`` alone; see ``answer``."""
    requests = [example.request for example in examples]
    return [one.text for one in answer(model, chat, visible, requests, batch, after_text)]


def check_examples_fit(model: PreTrainedModel, chat: ChatFormat, past: int, examples: Sequence[Example]) -> None:
    """Refuse what does not fit behind ``past`` tokens.

    Raises:
        InputError: question and answer are beyond the model's window.
    """
    check_requests_fit(model, chat, past, [example.request for example in examples])
