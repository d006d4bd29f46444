"""A request's JSON, read the same way whichever engine answers it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.values import quoted
from .api_errors import ApiError, bad_request
from .cards import described, model_card, refused
from .catalog import Catalog, Entry, tokens_of
from .naming import named_memories
from .prompts import Prompts, check_memory_request

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Asked:
    """What a request asks.

    Attributes:
        entries: the memories, in order; none for the plain model.
        ids: the tokens behind them.
    """

    entries: tuple[Entry, ...]
    ids: tuple[int, ...]

    @property
    def past(self) -> int:
        """Tokens that the memories take."""
        return tokens_of(self.entries)

    def memory_fields(self) -> dict[str, Any]:
        """What an answer says about its memories."""
        said = [{"id": entry.id, "digest": entry.digest} for entry in self.entries]
        return {} if not said else {"memory": said[0]} if len(said) == 1 else {"memories": said}


class Front:
    """What is before an engine: the memories, and what becomes of a request's words.

    Args:
        base: the model's name in requests.
    """

    def __init__(self, base: str, catalog: Catalog, prompts: Prompts):
        self.base, self.catalog, self.prompts = base, catalog, prompts

    def memories(self, body: Mapping[str, Any]) -> tuple[Entry, ...]:
        """The memories that a request names.

        Raises:
            ApiError: as ``named_memories``, ``Catalog.entries`` and ``check_memory_request``.
        """
        names = named_memories(body, self.base)
        if names:
            check_memory_request(body)
        return self.catalog.entries(names)

    def chat(self, body: Mapping[str, Any]) -> Asked:
        """A chat's question.

        Raises:
            ApiError: as ``memories`` and ``Prompts``.
        """
        entries = self.memories(body)
        messages = body.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
            raise bad_request("messages must be a list of {role, content}", "messages")
        ids = self.prompts.chat(entries, messages) if entries else self.prompts.plain_chat(messages)
        return self._asked(entries, ids, body)

    def completions(self, body: Mapping[str, Any]) -> list[Asked]:
        """The prompts of a completion, which are no chats.

        Raises:
            ApiError: as ``memories`` and ``Prompts``.
        """
        entries = self.memories(body)
        return [
            self._asked(entries, self.prompts.text(prompt, bool(entries)), body)
            for prompt in prompts_of(body.get("prompt"))
        ]

    def _asked(self, entries: tuple[Entry, ...], ids: Sequence[int], body: Mapping[str, Any]) -> Asked:
        asked = Asked(entries, tuple(ids))
        self.prompts.check_fits(asked.past, ids, new_tokens_of(body) or 1)
        return asked

    def cards(self) -> list[dict[str, Any]]:
        """Every memory as a model; those that cannot be served are left out."""
        return [model_card(self.base, found) for _, found in self._found() if isinstance(found, Entry)]

    def listed(self) -> list[dict[str, Any]]:
        """Every memory with what is known of it, or with why it cannot be served."""
        return [described(found) if isinstance(found, Entry) else refused(name, found) for name, found in self._found()]

    def _found(self) -> Iterator[tuple[str, Entry | ApiError]]:
        """Every id, with its memory or with why there is none."""
        for name in self.catalog.ids():
            try:
                yield name, self.catalog.entry(name)
            except ApiError as error:
                yield name, error


def new_tokens_of(body: Mapping[str, Any]) -> int | None:
    """The longest answer that a request wants; None if it does not say.

    Raises:
        ApiError: 400: it is no positive whole number.
    """
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise bad_request(f"{name} is {quoted(value)}; it must be a whole number of 1 or more", name)
            return value
    return None


def prompts_of(prompt: Any) -> list[Prompt]:
    """The prompts of a completion: texts, or lists of token ids.

    Raises:
        ApiError: 400.
    """
    if isinstance(prompt, str) or _is_ids(prompt):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(each, str) or _is_ids(each) for each in prompt):
        return prompt
    raise bad_request("prompt must be a text, a list of token ids, or a list of either", "prompt")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
