"""What a memory is found by: the questions that it was asked while it was compiled, or windows of its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from ..text.chat_format import Query, turns_of

# Words of a window, and of the end of one that the next window begins with. A window may be shorter, and the two may
# share more, where a sentence ends there.
WINDOW, OVERLAP = 40, 6
SHORTEST, LONGEST_OVERLAP = 20, 12
_END = re.compile(r"[.!?…。！？][\"')\]»”’]*$")


class Passage(NamedTuple):
    """Something that a memory is found by, and what it is."""

    kind: Literal["question", "text"]
    body: str


def passages_of(questions: Iterable[Query], text: str | None) -> list[Passage]:
    """A memory's questions, of a conversation what the user says; of a memory without any, the windows of its text.

    A question is nearer to a question of the same than a text is that only shares its words.
    """
    asked = [Passage("question", " ".join(turns_of(query)[::2])) for query in questions]
    return asked or [Passage("text", window) for window in windows(text or "")]


def windows(text: str) -> Iterator[str]:
    """Pieces of about ``WINDOW`` words that overlap, and begin and end with sentences where they can."""
    words = text.split()
    start = 0
    while start < len(words):
        end = min(start + WINDOW, len(words))
        if end < len(words):
            end = _last_end(words, start + SHORTEST, end) or end
        yield " ".join(words[start:end])
        if end == len(words):
            return
        start = _last_end(words, end - LONGEST_OVERLAP, end - 1) or end - OVERLAP


def _last_end(words: list[str], low: int, high: int) -> int | None:
    """The last index from ``high`` down to ``low`` that a sentence ends before."""
    return next((index for index in range(high, low - 1, -1) if _END.search(words[index - 1])), None)
