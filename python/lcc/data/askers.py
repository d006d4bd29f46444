"""Askers: ways to make a model write questions about a text that it reads.

An instruct model asks when it is told to, if it was trained to. Others write questions when one is begun for them, when
they see a few, or when the user's turn is left open. Which way suits a model is measured: see ``self_study``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar

from ..modeling.decoding import Decoded
from ..text.chat_format import ChatFormat, Query, turns_of
from ..text.plain_text import has_words_for, template_ids
from ..text.prompts import (
    ASK_FOLLOW_UP,
    ASK_HARD,
    ASK_NEXT,
    ASK_ONE,
    ASK_PLAIN,
    EXAMPLES,
    FOLLOW_UP_OPENINGS,
    HARD_OPENINGS,
    PLAIN_OPENINGS,
    SEPARATOR,
)

# Kinds of questions.
PLAIN, HARD, FOLLOW_UP = "plain", "hard", "follow_up"


class Asker(ABC):
    """Prompts for questions about a text, and what they make of the model's continuation.

    Args:
        ends: whether a token ends a response.

    Attributes:
        whole_sentences: pieces of text that it is shown begin and end with sentences.
    """

    name: ClassVar[str]
    whole_sentences: ClassVar[bool] = True

    def __init__(self, chat: ChatFormat, ends: Callable[[int], bool]):
        self._chat, self._ends = chat, ends

    def before(self) -> list[int]:
        """Tokens in front of the text, the chat's prefix first."""
        return self._chat.prefix_ids

    @abstractmethod
    def after(self, kind: str, so_far: Query) -> list[int]:
        """Tokens from the end of the text to where the model goes on.

        Args:
            kind: ``PLAIN``, ``HARD`` or ``FOLLOW_UP``.
            so_far: the conversation that the question goes on from: question, answer, ..., answer; or nothing.
        """

    def begun(self, kind: str, number: int) -> list[int]:
        """Tokens that a question begins with; ``number`` counts those of its kind."""
        return []

    def ends(self, token: int) -> bool:
        """Whether the model's continuation ends here."""
        return self._ends(token)

    def question(self, decoded: Decoded) -> str:
        """The question that the model wrote; empty if it wrote none."""
        if decoded.end is None:
            return ""
        return self._chat.tokenizer.decode(decoded.ids, skip_special_tokens=True).strip()


class Request(Asker):
    """The user asks for a question, and the assistant gives one. The embedded model was trained to."""

    name, whole_sentences = "request", False
    _requests: ClassVar[dict[str, str]] = {PLAIN: ASK_PLAIN, HARD: ASK_HARD, FOLLOW_UP: ASK_FOLLOW_UP}

    def after(self, kind: str, so_far: Query) -> list[int]:
        """The whole turn of the user, and the opening of the assistant's."""
        return self._chat.query_ids((*turns_of(so_far), self._requests[kind]) if so_far else self._requests[kind])


class OpenTurn(Asker):
    """The user's turn is left open behind the text, and the model goes on as the user."""

    name = "open_turn"

    def after(self, kind: str, so_far: Query) -> list[int]:
        """What separates a question from the text, or opens the user's next turn."""
        if not so_far:
            return self._chat.ids(SEPARATOR)
        *turns, answer = turns_of(so_far)
        opened = template_ids(self._chat.tokenizer, self._chat.next_turn)
        return [*self._chat.query_ids(tuple(turns)), *self._chat.ids(answer), *opened]


class Begun(Asker):
    """The user asks for a question, and it is begun for the assistant: "Q: Who"."""

    name = "begun"
    _openings: ClassVar[dict[str, tuple[str, ...]]] = {
        PLAIN: PLAIN_OPENINGS,
        HARD: HARD_OPENINGS,
        FOLLOW_UP: FOLLOW_UP_OPENINGS,
    }

    def __init__(self, chat: ChatFormat, ends: Callable[[int], bool]):
        super().__init__(chat, ends)
        self._written = lru_cache(maxsize=None)(lambda token: chat.tokenizer.decode([token]))

    def after(self, kind: str, so_far: Query) -> list[int]:
        """The conversation so far as lines below the text, a request, and a response that is begun."""
        turns = turns_of(so_far) if so_far else ()
        pairs = zip(turns[::2], turns[1::2], strict=True)
        lines = "".join(f"\nQ: {question}\nA: {' '.join(answer.split())}" for question, answer in pairs)
        request = self._chat.query_ids(ASK_NEXT if turns else ASK_ONE)
        return [*self._chat.ids(lines), *request, *self._chat.ids("Q:")]

    def begun(self, kind: str, number: int) -> list[int]:
        """A question word, or a few."""
        openings = self._openings[kind]
        return self._chat.ids(f" {openings[number % len(openings)]}")

    def ends(self, token: int) -> bool:
        """Whether the token ends the turn, the line, or the question."""
        return self._ends(token) or any(mark in self._written(token) for mark in "\n?")

    def question(self, decoded: Decoded) -> str:
        """A line that ends with a question mark."""
        if decoded.end is None or "?" not in self._written(decoded.end):
            return ""
        return f"{self._chat.tokenizer.decode(decoded.ids)}?".strip()


class Examples(Begun):
    """Other texts with questions stand in front of the text, and the next question is begun."""

    name = "examples"

    def before(self) -> list[int]:
        """The worked examples open the user's turn."""
        return [*self._chat.prefix_ids, *self._chat.ids(f"{EXAMPLES}{SEPARATOR}Text: ")]


# Of several that keep as much, the first is taken.
ASKERS: dict[str, type[Asker]] = {asker.name: asker for asker in (Request, Begun, Examples, OpenTurn)}


def usable_askers(chat: ChatFormat, ends: Callable[[int], bool]) -> list[Asker]:
    """The askers whose words the tokenizer can write: a small vocabulary has not all of them."""
    known = has_words_for(chat.tokenizer, EXAMPLES)
    return [make(chat, ends) for name, make in ASKERS.items() if known or name == Request.name]
