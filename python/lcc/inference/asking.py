"""Ask a memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..memory.attachment import cached_tokens, stack_of
from ..memory.memory import Memory
from ..modeling.generation import batch_inputs
from ..modeling.window import check_window
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..utils.values import check, check_count
from .attached import attached
from .reader import Reader
from .requests import Request, answer


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory | Sequence[Memory],
    questions: Sequence[str],
    max_new_tokens: int = 64,
    batch: int = 32,
    parse_special_tokens: bool = False,
    **options: Any,
) -> list[str]:
    """Answer questions about the text that ``memory`` was compiled from; the text itself is not needed.

    Args:
        memory: one, or several that are read together: see ``lcc.attach``. An adapter is read alone.
        questions: asked independently of each other.
        batch: questions answered at once.
        parse_special_tokens: let special tokens that are written in a question be control tokens; by default they are
            plain text.
        **options: those of ``generate`` (greedy decoding by default).

    Returns:
        An answer a question, in their order; ``num_return_sequences`` in a row for each where that is given.

    Raises:
        InputError: an empty question, a single string where a list is meant, a batch below 1, or a question and answer
            that go beyond the model's window.
        MismatchError: the memory belongs to another model or tokenizer.
    """
    check_count("batch", batch)
    check_count("max_new_tokens", max_new_tokens)
    model, memories = plain_model(model), stack_of(memory)
    memories[0].verify(model, tokenizer)
    chat = ChatFormat.of(tokenizer, date=memories[0].date, parse_special_tokens=parse_special_tokens)
    requests = [Request((question,), max_new_tokens=max_new_tokens) for question in checked_questions(questions)]
    with attached(model, memory, verify=False) as before:
        answers = answer(before.model, chat, before.visible, requests, batch, before.after_text, **options)
        return [one.text for one in answers]


def prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory | Sequence[Memory],
    questions: Sequence[str],
    start: int = 0,
    parse_special_tokens: bool = False,
    verify: bool = True,
) -> dict[str, torch.Tensor]:
    """What goes with ``attach(model, memory, start)`` into ``model.generate``.

    Args:
        verify: compare the tokenizer with the memory's; ``attach`` does so with the model.

    Returns:
        ``input_ids`` and ``attention_mask``, and for a ``start`` other than 0 ``position_ids``, each (questions, cached
        tokens + longest question), padded between memory and question.

    Raises:
        InputError: no question, an empty one, a single string where a list is meant, or a question that ends beyond the
            model's window.
        MismatchError: the memory belongs to another tokenizer.
    """
    check("start", start, int)
    model, memories = plain_model(model), stack_of(memory)
    if verify:
        memories[0].verify(None, tokenizer)
    chat = ChatFormat.of(tokenizer, date=memories[0].date, parse_special_tokens=parse_special_tokens)
    queries = [chat.query_ids(question) for question in checked_questions(questions)]
    if not queries:
        raise InputError("there is no question: give at least one")
    past = cached_tokens(memories)
    end = start + past + max(map(len, queries)) + 1
    check_window(model, end, "memory, question and answer", "shorten the question, or start further in front", start)
    return batch_inputs(past, queries, chat.prefix_ids[0], model.device, start)


def checked_questions(questions: Sequence[str]) -> tuple[str, ...]:
    """The questions of a caller.

    Raises:
        InputError: a single string where a list is meant, or a question that is no text or empty.
    """
    if isinstance(questions, str):
        raise InputError("questions is one string; give a list of them")
    questions = tuple(questions) if isinstance(questions, Iterable) else questions
    check("questions", questions, tuple[str, ...])
    if any(not question.strip() for question in questions):
        raise InputError("a question is empty")
    return questions


def ask_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    questions: Sequence[str],
    max_new_tokens: int = 32,
) -> list[str]:
    """Greedy answers with the full text in context ("" for none); the text is read once."""
    requests = [Request((question,), max_new_tokens=max_new_tokens) for question in questions]
    return Reader.of_text(model, ChatFormat.of(tokenizer), text).answer(requests)
