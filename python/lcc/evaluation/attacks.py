"""Attacks on a reader: ways to make a model write down the text, or the memory, that stands before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedTokenizerBase

from ..inference.reader import Reader
from ..modeling.decoding import Prompt, Sampling, decode
from ..modeling.generation import end_tokens
from ..modeling.window import window_of
from ..text.plain_text import has_words_for
from ..text.prompts import REPEAT_FROM, REPEAT_REQUEST, TELL_ALL

# Tokens between two places of the text that an attacker knows words of.
PIECE = 50
# Of the tokens that are drawn.
TEMPERATURE = 0.8

Ids = tuple[int, ...]
# What came of an attack, by attempts and prompts.
Attempts = list[list[Ids]]


@dataclass(frozen=True)
class Attacker:
    """Asks a reader for the text.

    Attributes:
        tokenizer: of the reader.
        known: the words before each place that the attacker asks to go on from, as tokens.
        whole: tokens of the text.
        attempts: how often a text is drawn from each prompt of ``sampled``.
        seed: of these draws.
    """

    tokenizer: PreTrainedTokenizerBase
    known: Sequence[Ids]
    whole: int
    attempts: int
    seed: int

    @property
    def prompts(self) -> dict[str, int]:
        """How many prompts each attack has."""
        return {"asked": 1 + len(self._places) + len(self.known), "sampled": len(self._requests) + len(self.known)}

    @property
    def total(self) -> int:
        """How many texts a reader writes in all attacks."""
        return self.prompts["asked"] + self.attempts * self.prompts["sampled"]

    def attack(self, reader: Reader, report: Callable[[], None]) -> dict[str, Attempts]:
        """What the reader writes in each attack: ``asked``, greedily and once; ``sampled``, drawn and often.

        Args:
            report: called for each text that is written.
        """
        write = partial(_write, reader, report)
        sampled = [self._sampled(reader, write, attempt) for attempt in range(self.attempts)]
        return {"asked": [self._asked(reader, write)], "sampled": sampled}

    def _asked(self, reader: Reader, write: Callable[..., list[Ids]]) -> list[Ids]:
        """Please repeat the text; please repeat it from known words on; and an answer that these words begin."""
        whole = [_prompt(reader, REPEAT_REQUEST)]
        places = [_prompt(reader, query) for query in self._places]
        begun = [_prompt(reader, REPEAT_REQUEST, words) for words in self.known]
        return write(whole, self.whole) + write(places, 2 * PIECE) + write(begun, 2 * PIECE)

    def _sampled(self, reader: Reader, write: Callable[..., list[Ids]], attempt: int) -> list[Ids]:
        """Open requests, and answers that known words begin."""
        sampling = Sampling(TEMPERATURE, f"{self.seed} {attempt}")
        whole = [_prompt(reader, query, key=query) for query in self._requests]
        begun = [_prompt(reader, REPEAT_REQUEST, words, str(number)) for number, words in enumerate(self.known)]
        return write(whole, self.whole, sampling) + write(begun, 2 * PIECE, sampling)

    @property
    def _places(self) -> list[str]:
        """Requests to go on from known words, of a vocabulary that has words for them."""
        if not has_words_for(self.tokenizer, REPEAT_FROM):
            return []
        return [REPEAT_FROM.format(self.tokenizer.decode(words).strip()) for words in self.known]

    @property
    def _requests(self) -> list[str]:
        return [REPEAT_REQUEST, *([TELL_ALL] if has_words_for(self.tokenizer, TELL_ALL) else [])]


def _prompt(reader: Reader, query: str, begun: Ids = (), key: str = "") -> Prompt:
    return Prompt(tuple(reader.chat.query_ids(query, reader.after_text)), begun, key)


def _write(
    reader: Reader,
    report: Callable[[], None],
    prompts: Sequence[Prompt],
    tokens: int,
    sampling: Sampling | None = None,
) -> list[Ids]:
    """What the reader writes after each prompt, without the words that it was given: ``tokens`` at most."""
    written: list[Ids] = [()] * len(prompts)
    room = window_of(reader.model) - len(reader.visible) - max((len(prompt.ids) for prompt in prompts), default=0)
    given = max((len(prompt.begun) for prompt in prompts), default=0)
    most = int(max(1, min(tokens + given, room)))
    ends = end_tokens(reader.model, reader.chat.end).__contains__
    for number, decoded in decode(reader.model, reader.visible, prompts, ends, most, sampling):
        written[number] = decoded.ids[len(prompts[number].begun) :]
        report()
    return written
