"""Ask a memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .attach import attach
from .chat import ChatFormat
from .errors import InputError
from .generate import answer_queries
from .generate import prompt as batched_prompt
from .memory import Memory


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    questions: Sequence[str],
    max_new_tokens: int = 64,
    batch: int = 32,
    **options: Any,
) -> list[str]:
    """Answer questions about the text that ``memory`` was compiled from; the text itself is not needed.

    Args:
        questions: asked independently of each other.
        batch: questions answered at once.
        **options: those of ``generate`` (greedy decoding by default).

    Raises:
        InputError: an empty question, or a single string where a list is meant.
        MismatchError: the memory belongs to another model or tokenizer.
    """
    if isinstance(questions, str):
        raise InputError("questions is one string; give a list of them")
    if any(not question.strip() for question in questions):
        raise InputError("a question is empty")
    memory.verify(model, tokenizer)
    chat = ChatFormat.of(tokenizer)
    queries = [chat.query_ids(question) for question in questions]
    visible = attach(model, memory).read()
    return answer_queries(model, chat, visible, queries, batch, max_new_tokens=max_new_tokens, **options)


def prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: Memory, questions: Sequence[str]
) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` that go with ``attach(model, memory)`` into ``model.generate``.

    Returns:
        Both (questions, cached tokens + longest question), padded between memory and question.
    """
    chat = ChatFormat.of(tokenizer)
    cached = len(memory.prefix_ids) + memory.buffer_tokens
    return batched_prompt(cached, [chat.query_ids(question) for question in questions], chat.end, model.device)
