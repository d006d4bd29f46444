"""A text cut into pieces that questions are asked about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

# A token with the end of a sentence, or of a line.
_END = re.compile(r"""[.!?]["')\]]*$|\n""")


def text_pieces(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` in pieces of ``length`` that overlap by half; everything at once for a length of 0."""
    if not length or len(ids) <= length:
        return [ids]
    starts = range(0, len(ids) - length // 2, max(1, length // 2))
    return [ids[start : start + length] for start in starts]


def sentence_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` in pieces of whole sentences, ``length`` tokens or a little more, that overlap by about half.

    A sentence of more than ``2 * length`` tokens is cut. Everything at once for a length of 0.
    """
    if not length or len(ids) <= length:
        return [ids]
    starts = _sentence_starts(tokenizer, ids, 2 * length)
    pieces: list[Sequence[int]] = []
    first = stop = 0
    while stop < len(ids):
        stop = next((start for start in starts if start >= first + length), len(ids))
        pieces.append(ids[first:stop])
        first = next((start for start in starts if start >= first + length // 2), stop)
    return pieces


def consecutive_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` in pieces of whole sentences, about ``length`` tokens each and none twice; everything for a length of 0.

    The pieces are as many as ``length`` goes into the text, to the nearest number, and alike in length.
    """
    count = round(len(ids) / length) if length else 1
    return [ids[start:stop] for start, stop in pairwise(even_bounds(tokenizer, ids, count))]


def even_bounds(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], count: int) -> list[int]:
    """Where ``count`` pieces of whole sentences, alike in length, begin, and where the last one ends.

    A sentence that is longer than a quarter of a piece may be cut. A piece is at most about a quarter longer than the
    mean.
    """
    if count <= 1:
        return [0, len(ids)]
    length = len(ids) / count
    starts = _sentence_starts(tokenizer, ids, max(1, int(length) // 4))
    cuts = [min(starts, key=lambda start: abs(start - number * length)) for number in range(1, count)]
    return sorted({0, *cuts, len(ids)})


def sentence_start(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], first: int, last: int) -> int:
    """The first place from ``first`` to ``last`` where a sentence begins; ``last`` if none does."""
    before = range(max(first, 1), last)
    return next((place for place in before if _END.search(tokenizer.decode([ids[place - 1]]))), last)


def _sentence_starts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], longest: int) -> list[int]:
    """Where sentences begin; also ``longest`` tokens behind such a place, if none begins before."""
    starts = [0]
    for place, token in enumerate(ids[:-1], 1):
        if _END.search(tokenizer.decode([token])) or place - starts[-1] >= longest:
            starts.append(place)
    return starts
