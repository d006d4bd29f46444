"""The model starts to answer questions behind several memories at once, and goes on behind the one that is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from ..modeling.decoding import Prompt
from ..modeling.first_tokens import FirstTokens, read_first
from ..modeling.generation import end_tokens
from ..modeling.kv import KV
from ..modeling.prefill import prefill
from ..text.chat_format import ChatFormat
from .index import Hit
from .signals import Candidate, candidates


@dataclass(frozen=True)
class Before:
    """What a question is read behind: memories, side by side, or the raw text of a single one."""

    keys: tuple[str, ...]
    source: Literal["memory", "text"] = "memory"


class BankReader:
    """A model before which the memories of a bank, and their texts, are put.

    Args:
        visible: rotated K and V of the chat's prefix and of what stands behind it.

    Attributes:
        plain: rotated K and V of the prefix alone.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, visible: Callable[[Before], KV]):
        self.model, self.chat, self._visible = model, chat, visible
        self.plain = prefill(model, chat.prefix_ids)
        self.ends = end_tokens(model, chat.end).__contains__

    def read(self, questions: Sequence[str], places: Sequence[Sequence[Before]]) -> Reading:
        """Read each question behind the plain model's prefix, and behind each of its ``places``, in one pass.

        Raises:
            InputError: a question goes beyond the model's window.
            MemoryFileError: a memory cannot be read.
        """
        distinct = list(dict.fromkeys(place for some in places for place in some))
        numbers = {place: number for number, place in enumerate(distinct, 1)}
        prompts: list[Prompt] = []
        first = []
        for question, some in zip(questions, places, strict=True):
            first.append(len(prompts))
            prompts.append(Prompt(tuple(self.chat.query_ids(question, after_text=False))))
            behind = tuple(self.chat.query_ids(question))
            prompts += [Prompt(behind, prefix=numbers[place]) for place in some]
        prefixes = [self.plain, *map(self._visible, distinct)]
        return Reading(read_first(self.model, prefixes, prompts), first, self)

    def text_of(self, ids: Sequence[int]) -> str:
        """What the tokens of an answer say."""
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True).strip()


@dataclass(frozen=True)
class Reading:
    """Questions of which the model knows the first token of the answer, behind each of their candidates.

    Attributes:
        tokens: of all rows: of each question the plain model's, then its candidates'.
        first: the plain model's row of each question.
    """

    tokens: FirstTokens
    first: Sequence[int]
    reader: BankReader

    def candidates(self, question: int, hits: Sequence[Hit]) -> list[Candidate]:
        """What is known of the candidates of a question by its number, in the order of its ``hits``."""
        row = self.first[question]
        rows = slice(row + 1, row + 1 + len(hits))
        keys, similarities = [hit.key for hit in hits], [hit.share for hit in hits]
        logits, hidden = self.tokens.logits, self.tokens.hidden
        return candidates(keys, similarities, logits[rows], hidden[rows], logits[row])

    def go_on(self, chosen: Sequence[tuple[int, int | None]], max_new_tokens: int) -> list[str]:
        """The answers of some questions.

        Args:
            chosen: numbers of questions, each with the number of its candidate; None: the plain model.
        """
        rows = [self.first[question] + (0 if choice is None else choice + 1) for question, choice in chosen]
        written = self.tokens.go_on(rows, self.reader.ends, max_new_tokens)
        return [self.reader.text_of(ids) for ids in written]
