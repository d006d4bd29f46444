"""One text at one ratio: the compiler's work, and what stands around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiled, Compiler, CompileTask
from ..compilers.registry import record
from ..data.cache import DataCache
from ..data.samples import DistillationData
from ..data.sections import split_context
from ..errors import InputError
from ..evaluation.certificate import measure
from ..evaluation.questions import Question, read_questions
from ..evaluation.sectioned_certificate import measure_sections
from ..memory.memory import Memory
from ..memory.metadata import Section
from ..memory.payload import KVPayload
from ..modeling.architecture import check_architecture
from ..modeling.fingerprint import fingerprint
from ..modeling.kv import KV, kv_shape
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
from .distractors import check_distractors, of_other_texts, with_samples
from .geometry import prefix_ids
from .identity import Identity, require_own
from .option_checks import check_sections
from .options import CompileOptions, Run
from .parent import check_parent, past_of, updated
from .section_data import SectionTexts
from .settings import CompileSettings

# Called with a memory that is better than those before it.
Keep = Callable[[Memory], None]


def compile_once(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
    keep: Keep | None = None,
) -> Memory:
    """Compile ``text`` at the ratio of ``options.settings``. Whoever keeps the memory removes the checkpoint.

    Args:
        keep: called with each memory, without a certificate, that is better than those before it.

    Raises:
        InputError, DivergedError, MismatchError, MemoryFileError: as ``lcc.compile``.
    """
    return Compilation.of(model, tokenizer, text, options, run, reporter).memory(keep)


@dataclass(frozen=True)
class Compilation:
    """One text at one ratio, checked and ready to be compiled.

    Attributes:
        digests: the fingerprint of the model and the tokenizer.
        questions: to certify with, if they are given.
        task: what the compiler is given; ``task.model`` is private to the compilation.
        data: that of the task.
        among: the distractors, by their digests.
    """

    tokenizer: PreTrainedTokenizerBase
    options: CompileOptions
    settings: CompileSettings
    digests: dict[str, str]
    queries: Sequence[str] | str
    questions: list[Question] | None
    task: CompileTask
    data: DataOnDemand
    among: dict[str, Memory]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        options: CompileOptions,
        run: Run,
        reporter: Reporter,
    ) -> Compilation:
        """Check all that is given; no work is done yet. For what is raised see ``compile_once``."""
        settings, ranks = options.settings, run.ranks
        model = loaded_model(model)
        check_architecture(model)
        if is_sharded(model) and not (run.distributed and settings.execution.engine == "packed"):
            raise InputError("the model's weights are sharded: compile needs distributed=True and engine='packed'")
        model = share_weights(model)
        folder = run.checkpoint
        date = None if folder is None else ranks.from_main(lambda: begun_on(folder))
        past = None
        if options.parent is not None:
            trained = settings.training.past_learning_rate > 0
            past, date = past_of(options.parent, model, trained), options.parent.memory.date
        special = settings.data.parse_special_tokens
        context = build_context(model, tokenizer, text, settings.ratio, date, special, past)
        context = split_context(model, context, settings.ratio, settings.data)
        longest = max(len(part.context_ids) for part in context.parts)
        if context.sections:
            check_sections(context, options.compiler, options.start is not None, bool(options.distractors))
        settings = settings.for_text(longest)
        questions = None
        if options.questions is not None:
            stands = context.before - len(context.prefix_ids) + longest
            questions = read_questions(options.questions, text, model, tokenizer, stands)
        digests = fingerprint(model, tokenizer)
        if options.parent is not None:
            check_parent(options.parent.memory, model, prefix_ids(context, settings), digests)
        queries = options.queries_for(tokenizer)
        among = of_other_texts(options.distractors, context.sha256)
        identity = Identity.of(settings, options.compiler, context, digests, queries, options.lineage, list(among))
        ranks.require_same(identity.compilation)
        if folder is not None and not run.restart:
            ranks.from_main(lambda: require_own(folder, identity))
        task, data = _task(model, context, settings, options.compiler, queries, run, identity, reporter)
        if options.start is not None:
            check_start(options.start, context, prefix_ids(context, settings), digests)
            task = replace(task, start=options.start.to(model.device).kv)
        if options.distractors:
            check_distractors(among, model, context, settings, digests)
        return cls(tokenizer, options, settings, digests, queries, questions, task, data, among)

    def memory(self, keep: Keep | None = None) -> Memory:
        """Compile, and certify if that is asked for."""
        task, compiler = self._task_among_distractors(), self.options.compiler

        def keep_better(compiled: Compiled) -> None:
            assert keep is not None
            keep(self._memory(compiled))

        with seeded(task.model.device, self.settings.seed):
            compiled = compiler.compile(replace(task, on_better=keep and keep_better))
            compiled = check_compiled(compiled, compiler, task.model, task.context, self.digests)
        memory = self._memory(compiled)
        return self._certified(memory) if self.options.certify else memory

    def blank(self) -> Memory:
        """What is known of the memory beforehand: K and V are zeros, and there is neither curve nor certificate."""
        context, model = self.task.context, self.task.model
        layers, heads, width = kv_shape(model.config)
        zeros = torch.zeros(layers, heads, context.buffer, width, dtype=model.dtype)
        return self._memory(Compiled(KVPayload(KV(zeros, zeros.clone()))))

    def _task_among_distractors(self) -> CompileTask:
        task = self.task
        samples = with_samples(self.among.values(), task.model, task.context.chat, self.settings)
        return replace(task, distractors=samples)

    def _certified(self, memory: Memory) -> Memory:
        model, settings = self.task.model, self.settings

        queries = load_queries(None, self.tokenizer) if self.queries == SELF else self.queries

        def certificate() -> dict[str, Any]:
            data = self.data.made
            rest = settings.data, settings.seed, queries, self.questions, self.task.reporter.count
            if data and self.task.context.sections:
                return measure_sections(model, self.task.context.sections, memory, data, *rest)
            return measure(model, self.task.context, memory, data, *rest)

        return replace(memory, certificate=self.task.ranks.from_main(certificate, together=is_sharded(model)))

    def _memory(self, compiled: Compiled) -> Memory:
        settings, context, model = self.settings, self.task.context, self.task.model
        data = self.data.made
        memory = Memory(
            payload=compiled.payload,
            prefix_ids=prefix_ids(context, settings),
            ratio=settings.ratio,
            source_tokens=len(context.context_ids),
            source_sha256=context.sha256,
            rope=dict(model.config.rope_parameters),
            fingerprint=self.digests,
            settings=self.options.settings.flat(),
            compiler=record(self.options.compiler),
            curve=list(compiled.curve),
            questions=tuple(sorted(data.self_questions, key=turns_of)) if data else (),
            asking=data.asking if data else None,
            date=context.chat.date,
            **self.options.succession,
            distractors=list(self.among),
            sections=[Section(tokens=len(one.context_ids), buffer_tokens=one.buffer) for one in context.sections],
            redacted=len(self.options.redact),
        )
        memory = memory.to(model.device, model.dtype)
        return memory if self.options.parent is None else updated(memory, self.options.parent)


def _task(
    model: PreTrainedModel,
    context: Context,
    settings: CompileSettings,
    compiler: Compiler,
    queries: Sequence[str] | str,
    run: Run,
    identity: Identity,
    reporter: Reporter,
) -> tuple[CompileTask, DataOnDemand]:
    ranks, date, split = run.ranks, context.chat.date, bool(context.sections)
    checkpoint = None
    if run.checkpoint is not None:
        checkpoint = Checkpoint(run.checkpoint, identity.compilation, identity.data, ranks, run.restart, date)

    def cache_of(text: Context, chosen: CompileSettings) -> DataCache | None:
        own = Identity.of(chosen, compiler, text, identity.fingerprint, queries).data
        if run.shared_data is not None:
            return DataCache(run.shared_data, own, ranks, run.restart, shared=True)
        return DataCache(run.checkpoint, own, ranks, run.restart, date, shared=split) if run.checkpoint else None

    def make() -> DistillationData:
        if split:
            return SectionTexts(model, context.sections, settings, queries, cache_of, reporter, ranks).data()
        cache = cache_of(context, settings)
        return distillation_data(model, context, settings, queries, cache, reporter, ranks)

    data = DataOnDemand(make)
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
