"""One text at one ratio: the compiler's work, and what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiled, CompileTask
from ..compilers.registry import record
from ..data.cache import DataCache
from ..data.samples import DistillationData
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
from ..text.queries import SELF, load_queries
from ..training.checkpoint import Checkpoint
from ..utils.progress import Reporter
from ..utils.random_state import seeded
from ..utils.resumable import begun_on
from .compiler_checks import check_compiled, check_start
from .distillation import DataOnDemand, distillation_data
from .identity import Identity, require_own
from .options import CompileOptions, Run
from .settings import CompileSettings


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
    settings = settings.for_text(len(context.context_ids))
    questions = None if options.questions is None else read_questions(options.questions, text, model, tokenizer)
    digests = fingerprint(model, tokenizer)
    queries = options.queries_for(tokenizer)
    identity = Identity.of(settings, options.compiler, context, digests, queries, options.lineage)
    ranks.require_same(identity.compilation)
    if folder is not None and not run.restart:
        ranks.from_main(lambda: require_own(folder, identity))
    task, data = _task(model, context, settings, queries, run, identity, reporter)
    if options.start is not None:
        check_start(options.start, context, _prefix_ids(context, settings), digests)
        task = replace(task, start=options.start.to(model.device).kv)
    with seeded(model.device, settings.seed):
        compiled = check_compiled(options.compiler.compile(task), options.compiler, model, context, digests)
    memory = _memory(model, context, compiled, data.made, options, digests)
    if not options.certify:
        return memory

    def certificate() -> dict[str, Any]:
        return measure(
            model, tokenizer, text, memory, data.made, data_settings, settings.seed,
            load_queries(None, tokenizer) if queries == SELF else queries, questions,
            reporter.count,
        )  # fmt: skip

    return replace(memory, certificate=ranks.from_main(certificate, together=is_sharded(model)))


def _task(
    model: PreTrainedModel,
    context: Context,
    settings: CompileSettings,
    queries: Sequence[str] | str,
    run: Run,
    identity: Identity,
    reporter: Reporter,
) -> tuple[CompileTask, DataOnDemand]:
    ranks, date = run.ranks, context.chat.date
    checkpoint = cache = None
    if run.checkpoint is not None:
        checkpoint = Checkpoint(run.checkpoint, identity.compilation, identity.data, ranks, run.restart, date)
        cache = DataCache(run.checkpoint, identity.data, ranks, run.restart, date)
    if run.shared_data is not None:
        cache = DataCache(run.shared_data, identity.data, ranks, run.restart, shared=True)
    data = DataOnDemand(lambda: distillation_data(model, context, settings, queries, cache, reporter, ranks))
    task = CompileTask(
        model=model,
        context=context,
        settings=settings.compiler,
        training=settings.training,
        execution=settings.execution,
        data=data,
        seed=settings.seed,
        reporter=reporter,
        checkpoint=checkpoint,
        checkpoint_every=run.checkpoint_every,
        ranks=ranks,
    )
    return task, data


def _prefix_ids(context: Context, settings: CompileSettings) -> tuple[int, ...]:
    """What stands before the memory."""
    return context.prefix_ids if settings.training.keep_prefix else ()


def _memory(
    model: PreTrainedModel,
    context: Context,
    compiled: Compiled,
    data: DistillationData | None,
    options: CompileOptions,
    digests: dict[str, str],
) -> Memory:
    settings = options.settings
    memory = Memory(
        payload=compiled.payload,
        prefix_ids=_prefix_ids(context, settings),
        ratio=settings.ratio,
        source_tokens=len(context.context_ids),
        source_sha256=context.sha256,
        rope=dict(model.config.rope_parameters),
        fingerprint=digests,
        settings=settings.flat(),
        compiler=record(options.compiler),
        curve=list(compiled.curve),
        questions=tuple(sorted(data.self_questions, key=turns_of)) if data else (),
        asking=data.asking if data else None,
        date=context.chat.date,
        lineage=options.lineage,
    )
    return memory.to(model.device, model.dtype)
