"""One text at one ratio: the compiler's work, and what stands around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiled, CompileTask
from ..data.cache import DataCache
from ..errors import InputError
from ..evaluation.certificate import measure, read_questions
from ..memory.memory import Memory
from ..modeling.architecture import check_architecture
from ..modeling.fingerprint import fingerprint
from ..modeling.model_copy import share_weights
from ..modeling.sharding import is_sharded
from ..modeling.weights import loaded_model
from ..text.chat_format import turns_of
from ..text.context import Context, build_context
from ..training.checkpoint import Checkpoint
from ..utils.progress import Reporter
from ..utils.random_state import seeded
from ..utils.resumable import begun_on
from .distillation import distillation_data
from .identity import Identity
from .options import CompileOptions, Run


def compile_once(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
) -> Memory:
    """Compile ``text`` at the ratio of ``options.settings``. Whoever keeps the memory removes the checkpoint.

    Raises:
        InputError, DivergedError, MismatchError, MemoryFileError: as ``lcc.compile``.
    """
    settings, ranks = options.settings, run.ranks
    model = loaded_model(model)
    check_architecture(model)
    if is_sharded(model) and not (run.distributed and settings.execution.engine == "packed"):
        raise InputError("the model's weights are sharded: compile needs distributed=True and engine='packed'")
    model = share_weights(model)
    folder = run.checkpoint
    date = None if folder is None else ranks.from_main(lambda: begun_on(folder))
    data_settings = settings.data
    context = build_context(
        model,
        tokenizer,
        text,
        settings.ratio,
        data_settings.max_response_tokens,
        date,
        data_settings.parse_special_tokens,
    )
    questions = None if options.questions is None else read_questions(options.questions, text, model, tokenizer)
    digests = fingerprint(model, tokenizer)
    identity = Identity.of(settings, options.compiler, context, digests, options.queries)
    ranks.require_same(identity.compilation)
    task = _task(model, context, options, run, identity, reporter)
    with seeded(model.device, settings.seed):
        compiled = options.compiler.compile(task)
    memory = _memory(model, context, compiled, options, digests)
    if not options.certify:
        return memory

    def certificate() -> dict[str, Any]:
        return measure(
            model, tokenizer, text, memory, compiled.data, data_settings, settings.seed, options.queries, questions,
            reporter.count,
        )  # fmt: skip

    return replace(memory, certificate=ranks.from_main(certificate, together=is_sharded(model)))


def _task(
    model: PreTrainedModel, context: Context, options: CompileOptions, run: Run, identity: Identity, reporter: Reporter
) -> CompileTask:
    settings, ranks, date = options.settings, run.ranks, context.chat.date
    checkpoint = cache = None
    if run.checkpoint is not None:
        checkpoint = Checkpoint(run.checkpoint, identity.compilation, identity.data, ranks, run.restart, date)
        cache = DataCache(run.checkpoint, identity.data, ranks, run.restart, date)
    if run.shared_data is not None:
        cache = DataCache(run.shared_data, identity.data, ranks, run.restart, shared=True)
    return CompileTask(
        model=model,
        context=context,
        settings=settings.compiler,
        training=settings.training,
        execution=settings.execution,
        data=lambda: distillation_data(model, context, settings, options.queries, cache, reporter, ranks),
        seed=settings.seed,
        reporter=reporter,
        checkpoint=checkpoint,
        checkpoint_every=run.checkpoint_every,
        ranks=ranks,
    )


def _memory(
    model: PreTrainedModel,
    context: Context,
    compiled: Compiled,
    options: CompileOptions,
    digests: dict[str, str],
) -> Memory:
    settings, compiler = options.settings, options.compiler
    memory = Memory(
        payload=compiled.payload,
        prefix_ids=context.prefix_ids if settings.training.keep_prefix else (),
        ratio=settings.ratio,
        source_tokens=len(context.context_ids),
        source_sha256=context.sha256,
        rope=dict(model.config.rope_parameters),
        fingerprint=digests,
        settings=settings.flat(),
        compiler={"name": compiler.name} | compiler.fingerprint(),
        curve=list(compiled.curve),
        questions=tuple(sorted(compiled.data.self_questions, key=turns_of)) if compiled.data else (),
        date=context.chat.date,
    )
    return memory.to(model.device, model.dtype)
