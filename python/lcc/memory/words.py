"""Words of the text that a memory's file holds as they are: questions that were asked of it, and answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..text.chat_format import turns_of
from .memory import Memory


def words_of(memory: Memory) -> list[str]:
    """Each question, and each answer, of the metadata."""
    words = [turn for query in memory.questions for turn in turns_of(query)]
    for questions in _measured(memory.certificate):
        words += [str(said) for missed in questions["missed"] for said in missed.values()]
    words += [str(said) for row in memory.served for changed in row["changed"] for said in changed.values()]
    return words


def strip(memory: Memory) -> Memory:
    """The memory without its words: the questions that it carries, and those of the certificate and of servers' rows.

    It answers as before. An update of it rehearses nothing, and a bank finds it by its text alone.
    """
    certificate = memory.certificate and _without_missed(memory.certificate)
    served = [row | {"changed": []} for row in memory.served]
    return replace(memory, questions=(), certificate=certificate, served=served)


def _measured(certificate: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Figures on questions: the certificate's, and those of an update on what it rehearsed."""
    for part in (certificate, (certificate or {}).get("rehearsed")):
        if part and part["questions"]:
            yield part["questions"]


def _without_missed(certificate: dict[str, Any]) -> dict[str, Any]:
    made = dict(certificate)
    if made["questions"]:
        made["questions"] = made["questions"] | {"missed": []}
    if made.get("rehearsed"):
        made["rehearsed"] = _without_missed(made["rehearsed"])
    return made
