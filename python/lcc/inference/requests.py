"""One path from a question to its answer, whoever asks: ``lcc.ask``, an evaluation or a certificate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers import PreTrainedModel

from ..modeling.generation import generate_after
from ..modeling.kv import KV
from ..modeling.shared_cache import SharedCache
from ..modeling.window import check_window
from ..text.chat_format import ChatFormat


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        turns: a question, or a conversation that ends in one: question, answer, ..., question.
        answer_prefix: what the answer begins with; the model goes on from there.
        max_new_tokens: longest answer.
    """

    turns: tuple[str, ...]
    answer_prefix: str = ""
    max_new_tokens: int = 64

    def query_ids(self, chat: ChatFormat, after_text: bool = True) -> list[int]:
        """The tokens from the end of the text (or of the prefix) to where the model goes on."""
        return chat.query_ids(self.turns, after_text) + chat.ids(self.answer_prefix)


@dataclass(frozen=True)
class Answer:
    """What the model answers."""

    text: str


def answer(
    model: PreTrainedModel,
    chat: ChatFormat,
    visible: KV,
    requests: Sequence[Request],
    batch: int = 32,
    after_text: bool = True,
    **options: Any,
) -> Iterator[Answer]:
    """Answer each request after the rotated tokens of ``visible`` alone; greedily, unless ``options`` say otherwise.

    Args:
        batch: requests answered at once; those of one ``max_new_tokens`` go together.
        after_text: ``visible`` ends in a text, or in what stands for one. False: it ends in the chat's prefix.
        **options: those of ``generate``.

    Returns:
        An answer a request, in their order; ``num_return_sequences`` in a row for each where that is given.

    Raises:
        InputError: text, question and answer are beyond the model's window; options that cannot be given.
    """
    check_requests_fit(model, chat, len(visible), requests, after_text)
    # No response holds what a chat begins with.
    filler = chat.prefix_ids[0]
    queries = [request.query_ids(chat, after_text) for request in requests]
    answers: dict[int, list[Answer]] = {}
    order = sorted(range(len(requests)), key=lambda index: requests[index].max_new_tokens)
    for tokens, group in groupby(order, key=lambda index: requests[index].max_new_tokens):
        indices = list(group)
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            rows = generate_after(
                model,
                SharedCache(visible),
                [queries[index] for index in part],
                chat.end,
                filler,
                max_new_tokens=tokens,
                **options,
            )
            several = len(rows) // len(part)
            texts = [Answer(chat.tokenizer.decode(row, skip_special_tokens=True).strip()) for row in rows]
            answers |= {index: texts[at * several : (at + 1) * several] for at, index in enumerate(part)}
    return (one for index in range(len(requests)) for one in answers[index])


def check_requests_fit(
    model: PreTrainedModel, chat: ChatFormat, past: int, requests: Sequence[Request], after_text: bool = True
) -> None:
    """Refuse requests that do not fit behind ``past`` tokens.

    Raises:
        InputError: question and answer are beyond the model's window.
    """
    needed = max((len(request.query_ids(chat, after_text)) + request.max_new_tokens for request in requests), default=0)
    remedy = "leave longer texts out, ask less at once, or take a model with a longer window"
    check_window(model, past + needed, "text or memory, question and answer", remedy)
