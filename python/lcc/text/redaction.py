"""Passages of a text: where they stand, and the text without them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..utils.values import check, quoted
from .plain_text import has_words_for

# Stands for what was cut out, where the vocabulary has words for it.
MARKER = "[…]"
Span = tuple[int, int]


def occurrences(text: str, passage: str) -> list[Span]:
    """Where ``passage`` begins and ends in ``text``, in characters; white space of any kind and length is alike."""
    return [found.span() for found in re.finditer(r"\s+".join(map(re.escape, passage.split())), text)]


def checked_passages(name: str, passages: Sequence[str], *texts: str) -> tuple[str, ...]:
    """The passages of a caller.

    Args:
        name: what errors call them.

    Raises:
        InputError: as ``checked_texts``, or a passage is in none of ``texts``.
    """
    passages = checked_texts(name, passages)
    for number, passage in enumerate(passages):
        if not any(occurrences(text, passage) for text in texts):
            raise InputError(
                f"{name}[{number}] is {quoted(passage)!r}, which the text does not hold: give its very words"
            )
    return passages


def checked_texts(name: str, passages: Sequence[str]) -> tuple[str, ...]:
    """Passages, whatever the text that they are of.

    Raises:
        InputError: a single string where a list is meant, or a passage that is no text or empty.
    """
    if isinstance(passages, str):
        raise InputError(f"{name} is one string; give a list of them")
    passages = tuple(passages) if isinstance(passages, Iterable) else passages
    check(name, passages, tuple[str, ...])
    if not all(passage.strip() for passage in passages):
        raise InputError(f"{name} holds an empty passage")
    return passages


def redact(text: str, passages: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """``text`` without any occurrence of ``passages``, each of which is replaced by ``MARKER`` or cut out.

    It is cut out where the vocabulary has no words for the marker, or a passage has a character of it. What stands
    around a cut never makes a passage anew: it would be cut out too.

    Raises:
        InputError: as ``checked_passages``.
    """
    check("text", text, str)
    passages = checked_passages("redact", passages, text)
    marked = bool(passages) and has_words_for(tokenizer, MARKER) and set(MARKER).isdisjoint("".join(passages))
    while spans := [span for passage in passages for span in occurrences(text, passage)]:
        for start, end in reversed(_merged(spans)):
            text = text[:start] + MARKER * marked + text[end:]
    return text


def _merged(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that overlap or touch as one."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
