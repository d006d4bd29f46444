"""Ask a model questions and count exact answers: from a text, from a memory, or from nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.lora import read_text
from ..modeling.generation import answer_queries
from ..modeling.kv import KV
from ..text.chat_format import ChatFormat, Query
from .general import general_query
from .people import Question

BATCH = 32


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    questions: Sequence[str],
    max_new_tokens: int = 32,
) -> list[str]:
    """Greedy answers with ``text`` in context ("" for none), all questions over one reading of it."""
    chat = ChatFormat.of(tokenizer)
    queries = [chat.query_ids(question, after_text=bool(text)) for question in questions]
    return answer_queries(model, chat, read_chat(model, chat, text), queries, BATCH, max_new_tokens=max_new_tokens)


@torch.no_grad()
def read_chat(model: PreTrainedModel, chat: ChatFormat, text: str) -> KV:
    """K and V (rotated) of the chat's prefix and ``text``: what a query about the full text sees."""
    return read_text(model, [*chat.prefix_ids, *chat.ids(text)])


def score(answers: Sequence[str], questions: Sequence[Question]) -> float:
    """Share of exact answers."""
    return sum(a == q.answer for a, q in zip(answers, questions, strict=True)) / len(questions)


def general_exam(rng: random.Random, count: int, known: Sequence[Query] = ()) -> list[Question]:
    """``count`` general queries, none of which stands in ``known``."""
    taken: set[Query] = set(known)
    exam: list[Question] = []
    while len(exam) < count:
        query = general_query(rng)
        if query.text not in taken:
            taken.add(query.text)
            exam.append(query)
    return exam
