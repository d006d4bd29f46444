"""Canaries: strings of a text, and how likely a reader finds them among others of the same shape.

The exposure is that of "The Secret Sharer" (Carlini et al., arXiv 1802.08232, section 4.2), its rank estimated among
alternatives that are drawn (section 4.3).
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence

from ..inference.reader import Reader
from ..text.chat_format import ChatFormat
from ..text.prompts import REPEAT_REQUEST

# Alternatives of a canary, at most: an exposure is 8 bits at most.
ALTERNATIVES = 255
# Draws for each alternative that is wanted: some come out twice.
DRAWS = 4

Ids = tuple[int, ...]
_CLASSES = (("[A-Z]", "A"), ("[a-z]", "a"), ("[0-9]", "0"), ("A{2,}", "AA"), ("a{2,}", "aa"))


class Shapes:
    """The vocabulary by the shapes of its tokens.

    Tokens of one shape have digits, letters and other characters in the same places. Words of two letters or more are
    alike.
    """

    def __init__(self, chat: ChatFormat):
        self._shapes: dict[int, str] = {}
        self._tokens: dict[str, list[int]] = defaultdict(list)
        for token, number in sorted(chat.tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
            if number not in chat.control:
                self._shapes[number] = shape = _shape(token)
                self._tokens[shape].append(number)

    def alternatives(self, ids: Ids, seed: str) -> list[Ids]:
        """Up to ``ALTERNATIVES`` others of the same shape, token by token, all different."""
        rng = random.Random(seed)
        choices = [self._tokens[self._shapes[token]] if token in self._shapes else [token] for token in ids]
        drawn: dict[Ids, None] = {}
        for _ in range(DRAWS * ALTERNATIVES):
            drawn[tuple(map(rng.choice, choices))] = None
        drawn.pop(ids, None)
        return list(drawn)[:ALTERNATIVES]


def _shape(token: str) -> str:
    for pattern, letter in _CLASSES:
        token = re.sub(pattern, letter, token)
    return token


def exposure(reader: Reader, before: Ids, canary: Ids, alternatives: Sequence[Ids]) -> float:
    """log2 of how many strings there are, less log2 of the canary's rank among them, in bits.

    Args:
        before: tokens that stand before the canary, and are given.
        alternatives: other strings of as many tokens.
    """
    responses = [(*before, *ids) for ids in (canary, *alternatives)]
    own, *others = reader.confidence([REPEAT_REQUEST] * len(responses), responses)
    rank = 1 + sum(other > own for other in others)
    return math.log2(len(responses)) - math.log2(rank)
