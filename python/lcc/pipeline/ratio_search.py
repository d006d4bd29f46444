"""``ratio="auto"``: the largest ratio whose memory keeps as much of the full text's score as is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError, TargetError
from ..memory.memory import Memory
from ..training.checkpoint import RATIO_FOLDER
from ..utils.progress import Reporter
from ..utils.values import check
from .settings import CompileSettings

LADDER = (32.0, 16.0, 8.0, 4.0, 2.0)
TARGET = 0.98

NOTHING_TO_MEASURE = (
    'ratio="auto" has nothing to measure: give questions, or let the model ask itself more (self_study_questions, '
    "self_study_weight) and hold more of that out (held_out); only what the full text settles counts"
)


class Attempt(Protocol):
    """A compilation that wants its ratio and a place for its checkpoint."""

    def __call__(self, *, ratio: float, checkpoint: Path | None) -> Memory:
        """Return a memory with a certificate."""
        ...


def check_search(settings: CompileSettings, target: float, questions_given: bool, certify: bool) -> None:
    """Refuse, before any work, a search that could not end.

    Raises:
        InputError: saying why.
    """
    check("target", target, float)
    if not 0 < target <= 1:
        raise InputError(f"target is {target}; it must be a share above 0, and 1 at most")
    if not certify:
        raise InputError('ratio="auto" is told by the certificate: leave certify on, or name a ratio')
    held_out = settings.self_study_weight and int(settings.self_study_questions * settings.held_out)
    if not questions_given and not held_out:
        raise InputError(NOTHING_TO_MEASURE)


def search_ratio(
    attempt: Attempt, text_tokens: int, target: float, checkpoint: Path | None, reporter: Reporter
) -> Memory:
    """Try the ratios of ``LADDER``, the largest first, until a memory's certificate has ``kept`` >= ``target``.

    A ratio larger than half the text is left out. Each has a checkpoint of its own: a search that was killed goes
    through the finished ones in the time of their certificates.

    Returns:
        The first memory that meets the target, with ``ratio_search``: the target and each ratio tried.

    Raises:
        InputError: a certificate without ``kept``: the full text's score is zero.
        TargetError: none meets the target, or the full text is no help with the questions, so that none can; the error
            holds the memory that keeps most.
    """
    ratios = [ratio for ratio in LADDER if text_tokens >= 2 * ratio] or LADDER[-1:]
    tried: list[dict[str, Any]] = []
    best: Memory | None = None
    most = -1.0
    for done, ratio in enumerate(ratios):
        reporter.ratio(f"ratio {ratio:g}{_so_far(tried)}", done, len(ratios))
        memory = attempt(ratio=ratio, checkpoint=checkpoint and checkpoint / f"{RATIO_FOLDER}{ratio:g}")
        kept = kept_share(memory)
        tried.append({"ratio": ratio, "buffer_tokens": memory.buffer_tokens, "kept": kept})
        if kept > most:
            best, most = memory, kept
        if kept >= target or not text_helps(memory):
            break
    reporter.ratio(f"ratio {ratio:g}{_so_far(tried)}", len(ratios), len(ratios))
    assert best is not None
    met = most >= target and text_helps(best)
    found = replace(best, ratio_search={"target": target, "met": met, "tried": tried})
    if not met:
        raise TargetError(missed_target(found), found)
    return found


def kept_share(memory: Memory) -> float:
    """The share of the full text's score on the certificate's questions that the memory keeps.

    Raises:
        InputError: it cannot be told.
    """
    measured = (memory.certificate or {}).get("questions")
    if measured is None:
        raise InputError(NOTHING_TO_MEASURE)
    if measured["kept"] is None:
        raise InputError('ratio="auto": the model answers none of the questions from the full text: give others')
    return measured["kept"]


def text_helps(memory: Memory) -> bool:
    """Whether the full text answers the certificate's questions better than nothing does."""
    score = _score(memory)
    return score is None or score["full_text"] > score["no_text"]


def missed_target(memory: Memory) -> str:
    """What to tell whoever asked for more than ``memory``, the best of a search, keeps."""
    search = memory.ratio_search or {}
    score = _score(memory)
    if score is not None and not text_helps(memory):
        return (
            f"the model scores {score['full_text']:.3f} with the full text and {score['no_text']:.3f} without it, so "
            "that no score can tell what a memory keeps: give questions that the text answers, or take a model that "
            f"reads it; the memory of ratio {memory.ratio:g} is the one that was tried"
        )
    shares = ", ".join(f"{each['kept']:.3f} at {each['ratio']:g}" for each in search["tried"])
    return (
        f"no ratio keeps {search['target']:g} of the full text's score ({shares}): lower the target, raise steps or "
        f"self_study_questions, split the text, or take the best, ratio {memory.ratio:g}"
    )


def _score(memory: Memory) -> dict[str, float] | None:
    questions = (memory.certificate or {}).get("questions")
    return None if questions is None else questions["score"]


def _so_far(tried: Sequence[dict[str, Any]]) -> str:
    return "".join(f" · {each['ratio']:g} keeps {each['kept']:.3f}" for each in tried)
