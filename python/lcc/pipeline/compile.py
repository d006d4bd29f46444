"""``compile``: a text in, a ``Memory`` out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiler
from ..compilers.registry import DEFAULT
from ..evaluation.questions import Questions
from ..memory.memory import Memory
from ..utils.progress import Reporter, reporting
from ..utils.resumable import remove_checkpoint
from .budget import compile_within
from .compile_once import Keep, compile_once
from .distractors import Given
from .options import CompileOptions, Run
from .ratio_search import require_target, search_ratio


def compile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    recipe: str = "default",
    compiler: str | Compiler = DEFAULT,
    queries: str | Path | Iterable[str] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 50,
    restart: bool = False,
    surrogates: str | os.PathLike | None = None,
    progress: bool | Reporter = True,
    distributed: bool = False,
    certify: bool = True,
    questions: Questions | None = None,
    target: float | None = None,
    start: Memory | str | os.PathLike | None = None,
    budget: float | str | None = None,
    distractors: Given | None = None,
    **settings: Any,
) -> Memory:
    """Compile ``text`` into K = ceil(tokens / ratio) buffer tokens that the frozen ``model`` reads instead of it.

    Latent Context Compilation, sections 3.2-3.5: a LoRA is on for text and buffer tokens only. It is trained until the
    model answers from the buffer's K and V as it answers from the text. Then the LoRA is thrown away. The model is left
    exactly as it came, also when compile raises.

    Args:
        model: a causal language model that ``lcc.modeling.architecture`` accepts: see docs/models.md.
        tokenizer: the model's own, with a chat template.
        text: the document.
        recipe: ``default``, ``fast`` (110 steps of 16 queries, not 300 of 64), or ``paper`` (its streams and steps).
        compiler: ``lcc``, ``direct_kv``, or without any data ``attention_matching``, ``gradmem`` and ``flashmem``;
            ``adapter``, whose memory is a LoRA; a name that ``lcc.register`` made known, or a ``Compiler``.
        queries: context-agnostic queries, see ``lcc.load_queries``; by default the package's own. ``self``: the model
            writes them.
        checkpoint: a folder to go on from after a kill. It is removed at the end.
        checkpoint_every: steps between two checkpoints.
        restart: remove a checkpoint of another compilation, or a damaged one, instead of refusing it.
        surrogates: a folder where compilations share their distillation data. The data depends on neither ratio,
            compiler nor learning rate. It is made on first use and never deleted automatically.
        progress: show a progress bar on stderr, or the reporter to show it with.
        distributed: share each step's samples among the processes of torch.distributed's default group. All of them
            make this call, and each gets the memory. Rank 0 alone writes the checkpoint.
        certify: measure the memory beside the full text and nothing, and record that in ``memory.certificate``.
        questions: to measure it on, see ``lcc.read_questions``; by default those that the model asked itself and that
            were held out.
        target: with ``ratio="auto"``, the share of the full text's score on those questions that the memory must keep;
            0.98 by default.
        start: a memory of the same text and ratio, or its file, to go on from: with the compilers ``lcc`` and
            ``direct_kv``. It is measured first, so that what is kept is never worse on what was held out.
        budget: seconds, or a text such as ``90s``, ``10m`` or ``2h``, that the call may take: an instant memory comes
            first, and ``compiler`` goes on from it. The budget decides the settings that the recipe ``fast`` names, and
            takes that recipe where the default one does not fit.
        distractors: memories of other texts, their files, or folders of such files, to train among: for a memory that
            is to be read beside others. ``isolated_share`` of the steps are without them, and the others have up to
            ``max_distractors`` of them around the memory. With the compilers ``lcc`` and ``direct_kv``.
        **settings: ``ratio``, ``seed``, and the fields of ``DataSettings``, ``TrainingSettings``, ``ExecutionSettings``
            and of the compiler's ``Settings``. ``ratio="auto"`` tries 32, 16, 8, 4 and 2 until the target is met.

    Raises:
        InputError: the text, the model, the tokenizer, a setting or a question cannot be used.
        TargetError: no ratio meets the target; the error holds the memory that keeps most.
        DivergedError: the loss became NaN; the last checkpoint stands.
        MismatchError: the checkpoint folder belongs to another compilation, the processes make different calls, or a
            distractor or ``start`` is another model's.
        MemoryFileError: a checkpoint cannot be read or written.
    """
    run = Run.of(checkpoint, checkpoint_every, restart, surrogates, distributed)
    options = CompileOptions.of(
        recipe, compiler, queries, questions, certify, target, start, budget, distractors, **settings
    )
    with reporting(run.ranks.main and progress) as reporter:
        memory = require_target(make_memory(model, tokenizer, text, options, run, reporter))
    if run.checkpoint and run.ranks.main:
        remove_checkpoint(run.checkpoint)
    return memory


@torch.inference_mode(False)
@torch.enable_grad()
def make_memory(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
    keep: Keep | None = None,
) -> Memory:
    """Compile ``text`` at one ratio, within a time, or search a ratio; the checkpoint is left.

    Args:
        keep: with a budget, called with each memory that is better than those before it.

    Returns:
        The memory. After a search that met no target it is the one that keeps most: see ``require_target``.
    """
    if options.budget is not None:
        return compile_within(model, tokenizer, text, options, run, reporter, keep)
    make = compile_once if options.target is None else search_ratio
    return make(model, tokenizer, text, options, run, reporter)
