"""What answers: the seam between HTTP and whatever runs the model."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .front import Asked

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0: the most probable token is taken.
        top_p, top_k: which tokens may be drawn; 0 for ``top_k``: any.
        seed: of the draws; None: another one each time.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Piece:
    """The next part of an answer.

    Attributes:
        text: may be empty, while a character is not whole.
        tokens: that it took, the end token included.
        finish: why the answer ends here; None: it goes on.
    """

    text: str
    tokens: int
    finish: Finish | None = None


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """What tells a tokenizer's tokens one by one.

    Raises:
        InputError: it is none of the package tokenizers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError("the tokenizer is none of the package tokenizers: save the model with a tokenizer.json")
    return backend


class Engine(Protocol):
    """Something that answers."""

    name: str

    def answer(self, asked: Asked, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer, piece by piece. Whoever stops reading closes the iterator, which frees its place.

        Raises:
            ApiError: 429: too many wait; 503: a memory cannot be loaded.
        """
        ...

    def stats(self) -> dict[str, float]:
        """Gauges by name: ``running``, ``waiting`` and what else there is."""
        ...

    def healthy(self) -> bool:
        """Whether it can answer."""
        ...

    async def close(self) -> None:
        """Let go of everything; answers that are under way end with an error."""
        ...

    def about(self) -> dict[str, Any]:
        """What a reader of logs wants to know of it."""
        ...
