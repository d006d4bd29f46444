"""Texts that are at hand, in parts that a model can read and repeat, and where a passage stands in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, takewhile

import torch
from transformers import PreTrainedModel

from ..data.pieces import even_bounds
from ..inference.reader import Reader
from ..modeling.prefill import prefill
from ..modeling.window import check_window, window_of
from ..text.chat_format import ChatFormat
from ..text.redaction import occurrences

# Tokens of a request and of a short answer, beside a part and its repetition.
ASKED = 200

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Tokens ``start`` to ``end`` of a text, and the model behind them.

    Attributes:
        ids: of the part, and of some tokens before it.
    """

    start: int
    end: int
    ids: Ids
    reader: Reader


@dataclass(frozen=True)
class Place:
    """A passage's tokens, those before it in its text, and the model behind the part that it stands in."""

    before: Ids
    ids: Ids
    reader: Reader


class KnownTexts:
    """Texts as a model reads them: one that it can read and repeat within its window is one part.

    Args:
        overlap: tokens of a part that the one before ends with.

    Attributes:
        ids: the tokens of each text.
        parts: those of all texts.

    Raises:
        InputError: the window has no room for a text.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, texts: Sequence[str], overlap: int):
        self._chat, self._texts = chat, texts
        self.ids = [tuple(chat.ids(text)) for text in texts]
        self._parts = [_parts(model, chat, ids, overlap) for ids in self.ids]
        self.parts = list(chain(*self._parts))

    @property
    def readers(self) -> list[Reader]:
        """The model behind each part."""
        return [part.reader for part in self.parts]

    def place(self, passage: str) -> Place:
        """Where a passage stands first."""
        number = next(number for number, text in enumerate(self._texts) if occurrences(text, passage))
        before, ids = located(self._chat, self._texts[number], self.ids[number], passage)
        middle = len(before) + len(ids) // 2
        part = next(part for part in self._parts[number] if part.start <= middle < part.end)
        return Place(before, ids, part.reader)


@torch.no_grad()
def _parts(model: PreTrainedModel, chat: ChatFormat, ids: Ids, overlap: int) -> list[Part]:
    prefix = chat.prefix_ids
    check_window(model, len(prefix) + ASKED + 2, "a part of the text", "take a model with a longer window")
    room = (window_of(model) - len(prefix) - ASKED) // 2
    overlap = int(min(overlap, room // 2))
    # A part may be a quarter longer than the mean.
    count = 1 if len(ids) <= room else math.ceil(1.25 * len(ids) / (room - overlap))
    parts = []
    for start, end in pairwise(even_bounds(chat.tokenizer, ids, count)):
        own = ids[max(0, start - overlap) : end]
        parts.append(Part(start, end, own, Reader(model, chat, prefill(model, [*prefix, *own]))))
    return parts


def located(chat: ChatFormat, text: str, ids: Ids, passage: str) -> tuple[Ids, Ids]:
    """The tokens before a passage's first occurrence in ``text``, and those that have a part of it.

    Args:
        ids: all tokens of ``text``.
    """
    start, end = occurrences(text, passage)[0]
    # The white space in front is often a part of the first word's token.
    first = _shared(chat.ids(text[:start].rstrip()), ids)
    upto = chat.ids(text[:end])
    last = _shared(upto, ids)
    # The last token may go on behind the passage: then it is another one where the text is cut.
    last = max(last + (last < len(upto)), first + 1)
    return ids[:first], ids[first:last]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
