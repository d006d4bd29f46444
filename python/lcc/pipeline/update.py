"""``update``: a memory takes more text in, without the text that it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiler
from ..compilers.registry import DEFAULT
from ..errors import InputError
from ..evaluation.questions import Questions
from ..memory.memory import Memory
from ..utils.progress import Reporter, reporting
from ..utils.resumable import remove_checkpoint
from ..utils.settings import AUTO
from ..utils.values import check
from .compile import make_memory
from .options import CompileOptions, Run
from .parent import Parent
from .settings import require_setting


def update(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory | str | os.PathLike,
    more_text: str,
    *,
    growing: bool = True,
    recipe: str = "default",
    compiler: str | Compiler = DEFAULT,
    queries: str | Path | Iterable[str] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 50,
    restart: bool = False,
    surrogates: str | os.PathLike | None = None,
    progress: bool | Reporter = True,
    certify: bool = True,
    questions: Questions | None = None,
    redact: Sequence[str] = (),
    **settings: Any,
) -> Memory:
    """A memory of what ``memory`` stands for and of ``more_text``; the old text is not needed.

    The teacher is the frozen model that reads the old memory and then the new text. ``memory`` is left as it is.

    Args:
        model: a causal language model, that which ``memory`` was compiled for; it is left exactly as it came.
        tokenizer: the model's own.
        memory: K and V of float numbers, or its file.
        more_text: what comes behind the memory's text.
        growing: K and V of new buffer tokens stand behind the old ones, which are trained too, or stay bit by bit with
            ``past_learning_rate=0``. False: the memory keeps its size, and as many of its tokens give way to new ones
            as the new text is a share of both texts.
        recipe: see ``lcc.compile``; as are ``queries``, ``checkpoint``, ``checkpoint_every``, ``restart``,
            ``surrogates`` and ``progress``.
        compiler: ``lcc`` or ``direct_kv``.
        certify: measure the memory beside the old memory with the new text, and beside nothing. Questions that the old
            memory carries and that were held out are among those that are asked.
        questions: about both texts, see ``lcc.compile``; beside the old memory with the new text.
        redact: passages that are cut out of the new text; see ``lcc.compile``.
        **settings: as ``lcc.compile`` takes them; ``ratio`` is that of the new text, by default the memory's own.
            ``rehearsal_questions`` and ``rehearsal_weight`` say how much of the old memory is rehearsed.

    Raises:
        InputError: the memory is quantised, an adapter or compiled without its prefix; or the text, the model or a
            setting cannot be used.
        DivergedError: the loss became NaN; the last checkpoint stands.
        MismatchError: the memory is another model's, or the checkpoint folder belongs to another compilation.
        MemoryFileError: the memory or a checkpoint cannot be read, or a checkpoint cannot be written.
    """
    run = Run.of(checkpoint, checkpoint_every, restart, surrogates)
    options = update_options(memory, growing, recipe, compiler, queries, certify, questions, redact, **settings)
    with reporting(progress) as reporter:
        text = options.redacted(more_text, tokenizer)
        made = make_memory(model, tokenizer, text, options, run, reporter)
    if run.checkpoint:
        remove_checkpoint(run.checkpoint)
    return made


def update_options(
    memory: Memory | str | os.PathLike,
    growing: bool = True,
    recipe: str = "default",
    compiler: str | Compiler = DEFAULT,
    queries: str | Path | Iterable[str] | None = None,
    certify: bool = True,
    questions: Questions | None = None,
    redact: Sequence[str] = (),
    **settings: Any,
) -> CompileOptions:
    """The options of ``lcc.update``.

    Raises:
        InputError: the memory, the compiler or a setting cannot be used.
        MemoryFileError: ``memory`` is the path of a file that is no memory.
    """
    check("growing", growing, bool)
    for name in settings:
        require_setting(name, compiler)
    parent = Parent(Memory.of(memory), growing)
    ratio = settings.pop("ratio", None)
    if ratio == AUTO:
        raise InputError('ratio="auto" is for texts that are compiled at once: name a ratio, or leave it out')
    if ratio is not None and not growing:
        raise InputError("a memory that does not grow keeps its number of buffer tokens: leave ratio out")
    ratio = parent.memory.ratio if ratio is None else ratio
    options = CompileOptions.of(
        recipe, compiler, queries, questions, certify=certify, redact=redact, ratio=ratio, **settings
    )
    if not getattr(options.compiler, "goes_on", False):
        raise InputError(f"the compiler {options.compiler.name!r} reads no memory: take lcc or direct_kv")
    if not options.settings.training.keep_prefix:
        raise InputError("an update is read behind the prefix: leave keep_prefix out")
    if not growing and not options.settings.training.past_learning_rate:
        raise InputError(
            "a memory that keeps its size has to say the same with fewer old tokens, and past_learning_rate=0 does not "
            "train them: let it grow, or leave past_learning_rate out"
        )
    return replace(options, parent=parent)
