"""The model starts to answer questions behind several memories at once, and goes on behind the one that is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import PreTrainedModel

from ..modeling.adapter import AdaptedModel, Adapter
from ..modeling.decoding import Prompt
from ..modeling.first_tokens import FirstTokens, read_first
from ..modeling.generation import end_tokens
from ..modeling.grouped_lora import FirstTokens as AdaptedTokens
from ..modeling.grouped_lora import first_tokens
from ..modeling.kv import KV
from ..modeling.prefill import prefill
from ..modeling.row_cache import check_rows
from ..text.chat_format import ChatFormat
from .index import Hit
from .neighbors import Neighborhood
from .signals import Candidate, candidates


@dataclass(frozen=True)
class Before:
    """What a question is read behind: memories, side by side, or the raw text of a single one."""

    keys: tuple[str, ...]
    source: Literal["memory", "text"] = "memory"


# A question and the candidate behind which it is read; None: the plain model.
Place = tuple[int, int | None]


class BankReader:
    """A model before which the memories of a bank, and their texts, are put.

    Args:
        put: what there is of a ``Before``: rotated K and V of the chat's prefix and of what stands behind it, or an
            adapter that shares the question's cache.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, put: Callable[[Before], KV | Adapter]):
        self.model, self.chat, self._put = model, chat, put
        self._plain = prefill(model, chat.prefix_ids)
        self.ends = end_tokens(model, chat.end).__contains__
        self._adapted: tuple[list[Adapter], AdaptedModel] | None = None

    def read(self, questions: Sequence[str], places: Sequence[Sequence[Before]]) -> Reading:
        """Read each question behind the plain model's prefix, and behind each of its ``places``.

        All that is K and V is read in one pass. Adapters go on from the plain model's K and V of their question, all of
        a question in one step.

        Raises:
            InputError: a question goes beyond the model's window.
            MemoryFileError: a memory cannot be read.
        """
        given = {before: self._put(before) for some in places for before in some}
        prefixes = {before: kv for before, kv in given.items() if isinstance(kv, KV)}
        adapters = {before: one for before, one in given.items() if isinstance(one, Adapter)}
        stacked = {before: row for row, before in enumerate(adapters)}
        numbers = {before: number for number, before in enumerate(prefixes, 1)}
        prompts: list[Prompt] = []
        rows: dict[Place, int] = {}
        adapted: dict[Place, tuple[AdaptedTokens, int]] = {}
        for question, (text, some) in enumerate(zip(questions, places, strict=True)):
            alone, behind = (tuple(self.chat.query_ids(text, after)) for after in (False, True))
            for choice, prefix in [(None, 0), *((n, numbers[one]) for n, one in enumerate(some) if one in numbers)]:
                rows[question, choice] = len(prompts)
                prompts.append(Prompt(alone if choice is None else behind, prefix=prefix))
            if own := [n for n, one in enumerate(some) if one in stacked]:
                before = prefill(self.model, alone[:-1], self._plain)
                chosen = [stacked[some[n]] for n in own]
                tokens = first_tokens(self._under([*adapters.values()]), before, alone[-1], chosen)
                adapted |= {(question, n): (tokens, row) for row, n in enumerate(own)}
        return Reading(self, read_first(self.model, [self._plain, *prefixes.values()], prompts), rows, adapted)

    def check(self, question: str, before: Before, max_new_tokens: int) -> None:
        """Refuse a question that the model's window does not hold with its answer behind K and V.

        Raises:
            InputError: naming the window that is needed.
        """
        prefix = self._put(before)
        if isinstance(prefix, KV):
            ids = tuple(self.chat.query_ids(question, after_text=True))
            check_rows(self.model, [prefix], [(0, ids)], max_new_tokens)

    def _under(self, adapters: list[Adapter]) -> AdaptedModel:
        """The model under adapters; the last ones are kept."""
        kept = self._adapted
        if kept is None or list(map(id, kept[0])) != list(map(id, adapters)):
            kept = self._adapted = adapters, AdaptedModel(self.model, adapters)
        return kept[1]

    def text_of(self, ids: Sequence[int]) -> str:
        """What the tokens of an answer say."""
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True).strip()


@dataclass
class Reading:
    """Questions of which the model knows the first token of the answer, behind each of their candidates.

    Attributes:
        tokens: the first tokens of what is K and V.
        rows: where they are.
        adapted: the first tokens of adapters, and where they are.
    """

    reader: BankReader
    tokens: FirstTokens
    rows: dict[Place, int]
    adapted: dict[Place, tuple[AdaptedTokens, int]]

    def candidates(self, question: int, hits: Sequence[Hit], neighborhood: Neighborhood) -> list[Candidate]:
        """What is known of the candidates of a question by its number, in the order of its ``hits``."""
        keys, similarities = [hit.key for hit in hits], [hit.share for hit in hits]
        known = [self._first((question, choice)) for choice in range(len(hits))]
        if not known:
            return []
        logits, hidden = (torch.stack(some) for some in zip(*known, strict=True))
        read = candidates(keys, similarities, logits, hidden, self._first((question, None))[0])
        return [replace(one, likeness=neighborhood.of(one.key)) for one in read]

    def go_on(self, chosen: Sequence[Place], max_new_tokens: int) -> list[str]:
        """The answers of some questions, each from its place."""
        shared = [place for place in chosen if place in self.rows]
        written = self.tokens.go_on([self.rows[place] for place in shared], self.reader.ends, max_new_tokens)
        ids: dict[Place, Sequence[int]] = dict(zip(shared, written, strict=True))
        for place in chosen:
            if place in self.adapted:
                tokens, row = self.adapted[place]
                ids[place] = tokens.go_on(row, self.reader.chat.end, max_new_tokens)
        return [self.reader.text_of(ids[place]) for place in chosen]

    def _first(self, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, (vocabulary,), and the hidden state, (H,), of a place's first token."""
        tokens, row = self.adapted[place] if place in self.adapted else (self.tokens, self.rows[place])
        return tokens.logits[row], tokens.hidden[row]
