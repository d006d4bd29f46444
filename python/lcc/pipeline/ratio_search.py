"""``ratio="auto"``: the largest ratio whose memory keeps as much of the full text's score as is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MismatchError, TargetError
from ..memory.memory import Memory
from ..text.chat_format import ChatFormat
from ..utils.progress import Reporter
from ..utils.resumable import PART, STATE_FILE
from .compile_once import compile_once
from .option_checks import NOTHING_TO_MEASURE
from .options import CompileOptions, Run

LADDER = (32.0, 16.0, 8.0, 4.0, 2.0)


def search_ratio(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
) -> Memory:
    """Try the ratios of ``LADDER``, the largest first, until a memory's certificate has ``kept`` >= the target.

    Ratios larger than half the text are left out. Each ratio has a checkpoint of its own inside the run's: a search
    that was killed goes through the finished ones in the time of their certificates. All ratios share their data.

    Returns:
        The first memory that meets the target; if none does, the one that keeps most. ``ratio_search`` holds the
        target, whether it was met, and each ratio tried.

    Raises:
        InputError: a certificate without ``kept``: the full text's score is zero.
    """
    target = options.target
    assert target is not None
    tokens = len(ChatFormat.of(tokenizer).ids(text))
    ratios = [ratio for ratio in LADDER if tokens >= 2 * ratio] or LADDER[-1:]
    tried: list[dict[str, Any]] = []
    best: Memory | None = None
    most = -1.0
    with runs_by_ratio(run) as at_ratio:
        for done, ratio in enumerate(ratios):
            reporter.ratio(f"ratio {ratio:g}{_so_far(tried)}", done, len(ratios))
            memory = compile_once(model, tokenizer, text, options.at_ratio(ratio), at_ratio(ratio), reporter)
            kept = kept_share(memory)
            tried.append({"ratio": ratio, "buffer_tokens": memory.buffer_tokens, "kept": kept})
            if kept > most:
                best, most = memory, kept
            if kept >= target or not text_helps(memory):
                break
    reporter.ratio(f"ratio {ratio:g}{_so_far(tried)}", len(ratios), len(ratios))
    assert best is not None
    met = most >= target and text_helps(best)
    return replace(best, ratio_search={"target": target, "met": met, "tried": tried})


@contextmanager
def runs_by_ratio(run: Run) -> Iterator[Callable[[float], Run]]:
    """Runs of one ratio each inside ``run``: each has a checkpoint of its own, and all share their data.

    Raises:
        MismatchError: the checkpoint is that of a compilation of one ratio.
    """
    if run.checkpoint and not run.restart and (run.checkpoint / f"{STATE_FILE}.safetensors").exists():
        raise MismatchError(
            f"{run.checkpoint} holds an unfinished compilation of one ratio: finish it with what it was started with, "
            "delete this folder, or add --force (restart=True)"
        )
    with nullcontext(run.checkpoint) if run.checkpoint else TemporaryDirectory() as among_ratios:
        shared = run.shared_data or Path(among_ratios)

        def at_ratio(ratio: float) -> Run:
            part = run.checkpoint and run.checkpoint / f"{PART}{ratio:g}"
            return replace(run, checkpoint=part, shared_data=shared)

        yield at_ratio


def require_target(memory: Memory, where: str = "") -> Memory:
    """``memory``, unless a search for it met no target.

    Args:
        where: the end of the message, such as where the memory is kept.

    Raises:
        TargetError: with the memory.
    """
    if memory.ratio_search is not None and not memory.ratio_search["met"]:
        raise TargetError(f"{missed_target(memory)}{where}", memory)
    return memory


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
    shares = ", ".join(f"{row['kept']:.3f} at {row['ratio']:g}" for row in search["tried"])
    return (
        f"no ratio keeps {search['target']:g} of the full text's score ({shares}): lower the target, raise steps or "
        f"self_study_questions, split the text, or take the best, ratio {memory.ratio:g}"
    )


def _score(memory: Memory) -> dict[str, float] | None:
    questions = (memory.certificate or {}).get("questions")
    return None if questions is None else questions["score"]


def _so_far(tried: Sequence[dict[str, Any]]) -> str:
    return "".join(f" · {row['ratio']:g} keeps {row['kept']:.3f}" for row in tried)
