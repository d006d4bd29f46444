"""Answers in the shapes of OpenAI's API."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .engine import Finish

DONE = "data: [DONE]\n\n"


@dataclass
class Choice:
    """One answer of a request, as far as it is written."""

    index: int
    text: str = ""
    tokens: int = 0
    finish: Finish | None = None


@dataclass(frozen=True)
class Shape:
    """What a response says beside its choices.

    Attributes:
        chat: a chat completion; else a completion.
        model: as the client named it.
        memories: what is said of them.
    """

    chat: bool
    model: str
    memories: dict[str, Any]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """A response that is no stream."""
        return self._head(stream=False) | {"choices": list(map(self._choice, choices)), "usage": usage} | self.memories

    def event(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An event of a stream."""
        return self._head(stream=True) | {"choices": list(choices)} | more

    def delta(self, choice: Choice, text: str, first: bool, last: bool) -> dict[str, Any]:
        """What a choice got; the last time, why it ends there."""
        said: dict[str, Any] = {
            "index": choice.index,
            "finish_reason": choice.finish if last else None,
            "logprobs": None,
        }
        if not self.chat:
            return said | {"text": text}
        return said | {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        said: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish, "logprobs": None}
        if not self.chat:
            return said | {"text": choice.text}
        return said | {"message": {"role": "assistant", "content": choice.text, "refusal": None}}

    def _head(self, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self.chat else "text_completion"
        start = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{start}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def event_line(content: dict[str, Any]) -> str:
    """An event as a stream has it."""
    return f"data: {json.dumps(content)}\n\n"


def usage_of(prompts: Sequence[int], cached: Sequence[int], choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens of prompts, memories included, of which the memories' were not computed, and of answers."""
    completion = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": completion,
        "total_tokens": sum(prompts) + completion,
        "prompt_tokens_details": {"cached_tokens": sum(cached)},
    }
