"""Questions that the frozen model itself asks about the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from .context import Context
from .encode import read_text
from .generate import generate_responses
from .kv import KV
from .settings import CompileSettings

ASK_REQUEST = "Ask a question about the text."
# Questions sampled at once about a piece of text, and how often at most.
ASKING_ROWS, ASKING_ROUNDS = 32, 4

Progress = Callable[[str, int, int], None]


def ask_questions(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings, progress: Progress
) -> list[str]:
    """Distinct questions that the model asks about the text: the same number about each piece of it, then about all.

    Asked about the whole text at once, a model keeps coming back to the same few facts, and what is never asked in any
    wording is what a memory forgets; asked about pieces alone, it joins and counts nothing.
    """
    prefix = text_kv.head(len(context.prefix_ids))
    pieces = text_pieces(context.context_ids, settings.self_study_piece)
    total = settings.self_study_questions
    of_pieces = total - round(total * settings.self_study_whole) * (len(pieces) > 1)
    found: dict[str, None] = {}
    for number, piece in enumerate(pieces):
        wanted = len(found) + (of_pieces - len(found)) // (len(pieces) - number)
        _ask(found, wanted, model, context, read_text(model, piece, prefix), settings)
        progress("asking itself", number, len(pieces))
    _ask(found, total, model, context, text_kv, settings)
    progress("asking itself", len(pieces), len(pieces))
    return list(found)


def _ask(
    found: dict[str, None], wanted: int, model: PreTrainedModel, context: Context, seen: KV, settings: CompileSettings
) -> None:
    """Add questions about what is in ``seen`` until there are ``wanted``, or no more come."""
    for _ in range(ASKING_ROUNDS):
        if len(found) >= wanted:
            return
        for question in _sample_questions(model, context, seen, settings):
            if len(found) < wanted:
                found.setdefault(question)


def text_pieces(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` in pieces of ``length`` that overlap by half; everything at once for a length of 0."""
    if not length or len(ids) <= length:
        return [ids]
    starts = range(0, len(ids) - length // 2, max(1, length // 2))
    return [ids[start : start + length] for start in starts]


def _sample_questions(model: PreTrainedModel, context: Context, seen: KV, settings: CompileSettings) -> list[str]:
    """One batch of questions about what is in ``seen``; empty ones and those without an end are left out."""
    sampled = generate_responses(
        model,
        seen,
        [context.chat.query_ids(ASK_REQUEST)] * ASKING_ROWS,
        settings.max_response_tokens,
        end=context.chat.end,
        temperature=settings.self_study_temperature,
    )
    finished = (ids for ids in sampled if len(ids) < settings.max_response_tokens)
    questions = (context.chat.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in finished)
    return [question for question in questions if question]
