"""A long text in sections: each with buffer tokens of its own, and small enough that the model reads two at once."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

from transformers import PreTrainedModel

from ..errors import InputError
from ..modeling.window import check_window, window_of
from ..text.context import Context
from ..utils.hashing import json_digest
from ..utils.settings import AUTO
from ..utils.values import require
from .pieces import even_bounds, sentence_start
from .reconstruction import longest_repetition
from .settings import DataSettings

# Room for a query and a response, in longest responses.
ASKED = 3


def split_context(model: PreTrainedModel, context: Context, ratio: float, settings: DataSettings) -> Context:
    """The text in sections; as it is if it is not to be split.

    A section's K is that of the tokens that are its own. All K buffer tokens stand in a row before the model, so that
    the positions stay inside its window.

    Raises:
        InputError: the window has no room for the text in one piece, and ``section_tokens`` is 0; or not for two
            sections of that size; or not for all buffer tokens.
    """
    length = _section_tokens(model, context, settings)
    count = math.ceil(len(context.context_ids) / length)
    if count == 1:
        return context
    tokenizer, ids = context.chat.tokenizer, context.context_ids
    sections: list[Context] = []
    for start, stop in pairwise(even_bounds(tokenizer, ids, count)):
        first = sentence_start(tokenizer, ids, max(0, start - settings.section_overlap), start) if start else 0
        sections.append(_part(context, ids[first:stop], math.ceil((stop - start) / ratio)))
    _check_sections(model, sections, settings)
    return replace(context, buffer=sum(section.buffer for section in sections), sections=tuple(sections))


def section_pairs(count: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of sections to ask across, each in the text's order: neighbours, and for each section one other."""
    rng = random.Random(f"{seed} pairs")
    pairs = {(number, number + 1) for number in range(count - 1)}
    for number in range(count):
        other = rng.choice([one for one in range(count) if one != number])
        pairs.add((min(number, other), max(number, other)))
    return sorted(pairs)


def joined(first: Context, second: Context) -> Context:
    """Two sections as one text, the second one's overlap with the first left out."""
    ids, more = first.context_ids, second.context_ids
    common = next((size for size in range(min(len(ids), len(more)), 0, -1) if ids[-size:] == more[:size]), 0)
    return _part(first, (*ids, *more[common:]), first.buffer + second.buffer)


def _part(context: Context, ids: tuple[int, ...], buffer: int) -> Context:
    return replace(context, context_ids=ids, buffer=buffer, sha256=json_digest(ids))


def _section_tokens(model: PreTrainedModel, context: Context, settings: DataSettings) -> int:
    """Tokens of the text that are a section's own, at most: all of a text that stays in one piece, as behind a past.

    Raises:
        InputError: the text has to stay in one piece, and the window has no room for it.
    """
    whole, chosen = len(context.context_ids), settings.section_tokens
    if context.past:
        require(chosen in (AUTO, 0), "section_tokens", chosen, "left out: an update takes its text in one piece")
    if chosen != AUTO and 0 < chosen < whole:
        return int(chosen)
    try:
        _check_whole(model, context, _asked(context, settings))
    except InputError:
        room = window_of(model) - context.before - ASKED * settings.max_response_tokens
        # A section may be a quarter longer than the mean, and begins with its overlap.
        largest = max(1.0, (room / 2 - settings.section_overlap) / 1.25)
        if chosen != AUTO or context.past or largest >= whole:
            raise
        return int(largest)
    return whole


def _asked(context: Context, settings: DataSettings) -> int:
    """Tokens behind the text in a step, or of a response, at most."""
    return max(len(longest_repetition(context, settings).input_ids), settings.max_response_tokens)


def _check_whole(model: PreTrainedModel, context: Context, asked: int) -> None:
    needed = context.before + len(context.context_ids) + context.buffer + asked
    what = f"{len(context.context_ids)} tokens of text, read and asked about,"
    remedy = "leave section_tokens out"
    if context.past:
        what, remedy = f"{len(context.past.kv)} tokens of the memory, and {what}", "take less text in at a time"
    check_window(model, needed, what, f"{remedy}, or take a model with a longer window")


def _check_sections(model: PreTrainedModel, sections: list[Context], settings: DataSettings) -> None:
    before, room = len(sections[0].prefix_ids), ASKED * settings.max_response_tokens
    longest = max(len(section.context_ids) for section in sections)
    check_window(model, before + 2 * longest + room, f"two sections of {longest} tokens", "lower section_tokens")
    asked = [_asked(section, settings) for section in sections]
    for section, own in zip(sections, asked, strict=True):
        _check_whole(model, section, own)
    buffer = sum(section.buffer for section in sections)
    what = f"{buffer} buffer tokens of {len(sections)} sections"
    check_window(model, before + buffer + max(room, *asked), what, "raise the ratio, or split the text")
