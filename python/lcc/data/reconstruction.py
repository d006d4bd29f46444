"""The reconstruction: the model is to repeat the text, a long one piece by piece.

A step that repeats one piece costs far less than one that repeats a long text, and needs a window for the text and a
piece, not for the text twice.
"""

from __future__ import annotations

from ..text.context import Context
from ..text.plain_text import has_words_for
from ..text.prompts import REPEAT_FROM, REPEAT_REQUEST
from ..utils.settings import AUTO
from .pieces import consecutive_pieces
from .samples import Sample
from .settings import DataSettings

# Tokens of a piece for models that understand where it begins, and tokens of it that say so.
PIECE, QUOTED = 256, 10


def repetitions(context: Context, settings: DataSettings) -> list[Sample]:
    """A sample for each piece of the text, which together are the text; one for a short text.

    The first is asked for as the whole text is, the others by their first words. The last one comes to an end.
    """
    chat, tokenizer = context.chat, context.chat.tokenizer
    pieces = consecutive_pieces(tokenizer, context.context_ids, _length(context, settings))
    samples = []
    for number, piece in enumerate(pieces):
        query = REPEAT_FROM.format(tokenizer.decode(piece[:QUOTED]).strip()) if number else REPEAT_REQUEST
        ends = (chat.end,) if number == len(pieces) - 1 else ()
        samples.append(Sample(tuple(chat.query_ids(query)), (*piece, *ends), "reconstruction", query))
    return samples


def longest_repetition(context: Context, settings: DataSettings) -> Sample:
    """The one of ``repetitions`` with the most tokens."""
    return max(repetitions(context, settings), key=lambda sample: len(sample.input_ids))


def _length(context: Context, settings: DataSettings) -> int:
    if settings.reconstruction_piece != AUTO:
        return int(settings.reconstruction_piece)
    return PIECE if has_words_for(context.chat.tokenizer, REPEAT_FROM) else 0
