"""A running memory: the turns of a conversation become few tokens, by Attention Matching on the K and V they have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...memory.consolidation import Turns
from ...modeling.kv import KV
from ...modeling.lora import frozen
from ...modeling.scoring import Completion
from ...text.prompts import REPEAT_REQUEST
from ...text.queries import load_queries
from ...utils.values import check, check_count, require
from .compiler import matched, within
from .heads import highest_attention

# Tokens of the turns that are repeated in a row, and reference queries at most, in tokens.
PIECE, REFERENCES = 256, 2048


@dataclass(frozen=True)
class RunningMemory:
    """A ``Consolidation`` that evicts the turns and puts a memory of them in their place; nothing is trained.

    No text is read again: only what is to be remembered is asked for, behind the K and V that the turns have.

    Attributes:
        ratio: tokens of the turns for each token that is kept, at least 1.
        reference_tokens: reference queries at most, in tokens: half repeat the turns, half are general queries.
    """

    ratio: float = 8.0
    reference_tokens: int = REFERENCES

    def __post_init__(self) -> None:
        check("ratio", self.ratio, float)
        require(1 <= self.ratio < math.inf, "ratio", self.ratio, "a number of at least 1")
        check_count("reference_tokens", self.reference_tokens)

    def __call__(self, turns: Turns) -> KV:
        """What stood before the turns, and ceil(turns / ratio) tokens for each head behind it."""
        prefix, text = turns.before, turns.visible.tail(len(turns.ids))
        kept = math.ceil(len(turns.ids) / self.ratio)
        with frozen(turns.model), torch.no_grad():
            memory, _ = matched(turns.model, prefix, text, kept, self._references(turns), highest_attention, fold=True)
        return memory.after(prefix)

    def _references(self, turns: Turns) -> list[Completion]:
        """The turns repeated, piece by piece, and general queries."""
        chat, ids = turns.chat, turns.ids
        request = tuple(chat.turn_ids(REPEAT_REQUEST))
        repeated = [Completion(request, ids[start : start + PIECE]) for start in range(0, len(ids), PIECE)]
        general = [Completion(tuple(chat.turn_ids(query)), (chat.end,)) for query in load_queries(None, chat.tokenizer)]
        return [*within(repeated, self.reference_tokens // 2), *within(general, self.reference_tokens // 2)]
