"""Questions that the frozen model itself asks about the text: plain ones, hard ones, and those that go on from answers.

What is never asked is what a memory forgets. So plain questions are asked about one piece of the text after another:
about the whole text at once a model keeps coming back to the same few facts. Of the hard questions, which join, compare
or count, half are asked about longer pieces and half about the whole text; and a conversation needs answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import cycle, islice

from transformers import PreTrainedModel

from ..modeling.generation import generate_responses, greedy_responses
from ..modeling.kv import KV
from ..modeling.prefill import prefill
from ..modeling.window import window_of
from ..text.chat_format import Query, turns_of
from ..text.context import Context
from ..text.prompts import ASK_FOLLOW_UP, ASK_HARD, ASK_PLAIN
from ..utils.progress import Report
from .settings import DataSettings

# Questions sampled at once, and how often as many as are wanted are sampled, at most: many come twice.
ASKING_ROWS, ASKING_ROUNDS = 64, 4
# Pieces of text for hard questions, in pieces for plain ones.
HARD_PIECES = 2
# Turns of the longest conversation.
TURNS = 4


def ask_questions(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: DataSettings, seed: int, report: Report
) -> dict[Query, float]:
    """Distinct questions and conversations, each kind's share as the settings say, with weights to draw them by.

    Args:
        text_kv: K and V of [P | C], rotated.
    """
    asking = _Asking(model, context, settings, seed)
    total, ids, length = settings.self_study_questions, context.context_ids, settings.self_study_piece
    hard, follow_ups = int(total * settings.self_study_hard), int(total * settings.self_study_follow_ups)
    pieces, longer = text_pieces(ids, length), text_pieces(ids, HARD_PIECES * length)
    stages = len(pieces) + len(longer) + TURNS
    prefix = text_kv.head(len(context.prefix_ids))
    times: dict[Query, int] = {}

    def ask_each(request: str, most: int, parts: Sequence[Sequence[int]], done: int) -> None:
        """Ask about every part, the same number of questions about each, until there are ``most`` in all."""
        for number, part in enumerate(parts):
            wanted = (most - len(times)) // (len(parts) - number)
            asking.ask(times, wanted, prefill(model, part, prefix), request)
            report("asking itself", done + number + 1, stages)

    ask_each(ASK_PLAIN, total - hard - follow_ups, pieces, 0)
    plain: list[Query] = list(times)
    starts = plain
    ask_each(ASK_HARD, len(plain) + hard // 2, longer, len(pieces))
    asking.ask(times, len(plain) + hard - len(times), text_kv, ASK_HARD)
    report("asking itself", stages - TURNS + 1, stages)
    weights = _weights({query: times.pop(query) for query in plain}) | _weights(times)
    for turn in range(1, TURNS):
        wanted = follow_ups // (TURNS - turn)
        starts = asking.go_on(starts, wanted, text_kv)
        weights |= dict.fromkeys(starts, 1.0)
        follow_ups -= wanted
        report("asking itself", stages - TURNS + 1 + turn, stages)
    return weights


def _weights(times: Mapping[Query, int]) -> dict[Query, float]:
    """Sampling weights: sqrt(times sampled), normalised to mean 1 within a kind of question.

    Rare kinds (counting) keep their share beside common ones (joins).
    """
    mean = sum(map(math.sqrt, times.values())) / max(1, len(times))
    return {query: math.sqrt(often) / mean for query, often in times.items()}


def text_pieces(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` in pieces of ``length`` that overlap by half; everything at once for a length of 0."""
    if not length or len(ids) <= length:
        return [ids]
    starts = range(0, len(ids) - length // 2, max(1, length // 2))
    return [ids[start : start + length] for start in starts]


class _Asking:
    """The model, asked for questions about what it sees."""

    def __init__(self, model: PreTrainedModel, context: Context, settings: DataSettings, seed: int):
        self.model, self.chat, self.settings = model, context.chat, settings
        # The student reads what is asked here behind text and buffer.
        self.room = window_of(model) - context.buffer - settings.max_response_tokens
        self.rng = random.Random(seed)

    def ask(self, times: dict[Query, int], wanted: int, seen: KV, request: str) -> None:
        """Add up to ``wanted`` distinct questions about ``seen`` to ``times``, and count how often each is sampled.

        Stops after a round without a new question, or after two rounds without a complete one.
        """
        most, silent = len(times) + wanted, False
        # All rows ask the same: the request is read once, but for the token whose logits begin each question.
        *read, last = self.chat.query_ids(request)
        begun = prefill(self.model, read, seen)
        for _ in range(ASKING_ROUNDS * -(-wanted // ASKING_ROWS)):
            before = len(times)
            questions = [question for question in self._sample(begun, [[last]] * ASKING_ROWS) if question]
            for question in questions:
                if question in times or len(times) < most:
                    times[question] = times.get(question, 0) + 1
            if len(times) == most or (len(times) == before and (questions or silent)):
                return
            silent = not questions

    def go_on(self, starts: Sequence[Query], wanted: int, seen: KV) -> list[Query]:
        """Conversations that are one turn longer than those of ``starts``, in which the model answers itself.

        Those that the model's window has no room for are left out.
        """
        chosen = list(islice(cycle(self.rng.sample(starts, len(starts))), wanted))
        chosen = [query for query in chosen if self._fits(seen, self.chat.query_ids(query))]
        ids = [self.chat.query_ids(query) for query in chosen]
        batches = greedy_responses(self.model, seen, ids, self.settings.max_response_tokens, self.chat.end)
        answers = [self._text(response) for batch in batches for response in batch]
        answered = [(*turns_of(query), answer) for query, answer in zip(chosen, answers, strict=True)]
        longer: dict[Query, None] = {}
        for start in range(0, len(answered), ASKING_ROWS):
            rows = answered[start : start + ASKING_ROWS]
            questions = self._sample(seen, [self.chat.query_ids((*turns, ASK_FOLLOW_UP)) for turns in rows])
            longer |= {(*turns, question): None for turns, question in zip(rows, questions, strict=True) if question}
        return list(longer)

    def _sample(self, seen: KV, requests: Sequence[Sequence[int]]) -> list[str]:
        """A question for each request, which are tokens; empty if it did not end in time or finds no room."""
        longest, temperature = self.settings.max_response_tokens, self.settings.self_study_temperature
        fitting = [index for index, ids in enumerate(requests) if self._fits(seen, ids)]
        questions = [""] * len(requests)
        if fitting:
            rows = [requests[index] for index in fitting]
            sampled = generate_responses(self.model, seen, rows, longest, self.chat.end, temperature)
            for index, ids in zip(fitting, sampled, strict=True):
                questions[index] = self._text(ids) if len(ids) < longest else ""
        return questions

    def _fits(self, seen: KV, ids: Sequence[int]) -> bool:
        return len(seen) + len(ids) <= self.room

    def _text(self, ids: Sequence[int]) -> str:
        return self.chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
