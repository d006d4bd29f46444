"""The memories that a text is compiled among: which are given, and which of them can stand beside it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiler
from ..data.samples import Sample
from ..errors import InputError, MismatchError
from ..inference.reader import Reader
from ..memory.memory import Memory
from ..modeling.fingerprint import fingerprint, require_same
from ..modeling.window import check_window
from ..text.chat_format import ChatFormat
from ..text.context import Context
from ..training.distractors import Distractor, asked_samples, most_tokens
from ..utils.outputs import MEMORY_SUFFIX
from ..utils.random_state import sample_up_to
from .geometry import prefix_ids
from .settings import CompileSettings

# Questions that are answered from each distractor.
QUESTIONS = 64
# Memories, their files, and folders of such files.
Given = Iterable[Memory | str | os.PathLike]


def load_distractors(given: Given, compiler: Compiler) -> dict[str, Memory]:
    """The memories that are given, by their digests, in the order of these.

    Raises:
        InputError: the compiler takes none, a memory is quantised, or there is none.
        MemoryFileError: a file is no memory.
    """
    if not getattr(compiler, "among", False):
        raise InputError(
            f"the compiler {compiler.name!r} takes no distractors: leave them out, or take direct_kv or lcc"
        )
    named = (given,) if isinstance(given, (Memory, str, os.PathLike)) else given
    memories = {memory.digest: memory for one in named for memory in _memories(one)}
    if not memories:
        raise InputError(f"there are no distractors: give memories, their files, or folders of *{MEMORY_SUFFIX}")
    for memory in memories.values():
        if memory.quantized:
            raise InputError(f"a distractor is a {memory.dtype} memory: give the float one that it was made from")
    return dict(sorted(memories.items()))


def _memories(given: Memory | str | os.PathLike) -> Iterator[Memory]:
    if isinstance(given, Memory):
        yield given
    elif os.path.isdir(given):
        yield from map(Memory.load, sorted(Path(given).glob(f"*{MEMORY_SUFFIX}")))
    else:
        yield Memory.load(given)


def of_other_texts(distractors: Mapping[str, Memory], source_sha256: str) -> dict[str, Memory]:
    """Those that are no memory of the text with this digest."""
    return {digest: memory for digest, memory in distractors.items() if memory.source_sha256 != source_sha256}


@torch.no_grad()
def with_samples(
    memories: Iterable[Memory], model: PreTrainedModel, chat: ChatFormat, settings: CompileSettings
) -> tuple[Distractor, ...]:
    """The memories as they are trained among: each with some of the questions that it was trained on, and its answers.

    Args:
        model: frozen; K and V become its dtype and go to its device.
    """
    rng, distractors = random.Random(settings.seed), []
    for memory in memories:
        here, questions = memory.to(model.device, model.dtype), memory.questions
        samples: tuple[Sample, ...] = ()
        if questions and asked_samples(settings.training) and settings.training.isolated_share < 1:
            chosen = sample_up_to(rng, questions, QUESTIONS)
            said = Reader.of_memory(model, chat, here).say(chosen, settings.data.max_response_tokens)
            states = said.states.split([len(response) for response in said.responses])
            samples = tuple(
                Sample(tuple(chat.query_ids(query)), response, "distractors", query, hidden)
                for query, response, hidden in zip(said.queries, said.responses, states, strict=True)
            )
        distractors.append(Distractor(here.kv, samples))
    return tuple(distractors)


def check_distractors(
    distractors: Mapping[str, Memory],
    model: PreTrainedModel,
    context: Context,
    settings: CompileSettings,
    digests: dict[str, str],
) -> int:
    """Refuse memories that cannot stand beside the one of ``context``.

    Args:
        digests: the fingerprint of the model and the tokenizer.

    Returns:
        Tokens of those of one step at most.

    Raises:
        InputError: none is of another text, or the longest step is too long for the model's window.
        MismatchError: one is another model's or tokenizer's, or stands behind another prefix.
    """
    if not distractors:
        raise InputError("all distractors are memories of this very text: give memories of other texts")
    prefix = prefix_ids(context, settings)
    for memory in distractors.values():
        require_same(memory.fingerprint, digests)
        if memory.prefix_ids != prefix:
            raise MismatchError(
                "a distractor stands behind another prefix: compile it with the same chat template and keep_prefix, "
                "and on the same date if the template writes the date"
            )
    beside = most_tokens([memory.buffer_tokens for memory in distractors.values()], settings.training)
    repeated = len(context.context_ids) + settings.data.max_response_tokens
    needed = len(prefix) + beside + context.buffer + repeated
    check_window(model, needed, f"a memory among {beside} tokens of distractors", "lower max_distractors")
    return beside


def tokens_beside(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    context: Context,
    settings: CompileSettings,
    compiler: Compiler,
    given: Given | None,
) -> int:
    """Tokens of the distractors in a step at most; 0 if none are given.

    Raises:
        InputError, MismatchError, MemoryFileError: as ``load_distractors`` and ``check_distractors``.
    """
    if given is None:
        return 0
    among = of_other_texts(load_distractors(given, compiler), context.sha256)
    return check_distractors(among, model, context, settings, fingerprint(model, tokenizer))
