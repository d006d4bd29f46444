"""``compile``: a text in, a ``Memory`` out; the optimizer, the teacher and the LoRA live and die in here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.lora import Writer, WriterFactory, lora_compiler, read_text
from ..data.synthesis import Surrogate, build_surrogate
from ..errors import InputError
from ..memory.memory import Memory
from ..modeling.architecture import check_architecture
from ..modeling.fingerprint import fingerprint
from ..modeling.kv import KV
from ..modeling.model_copy import share_weights
from ..modeling.sharding import is_sharded
from ..modeling.weights import loaded_model
from ..text.chat_format import ChatFormat, turns_of
from ..text.context import Context, build_context
from ..text.queries import load_queries, reread
from ..training.checkpoint import Checkpoint, begun_on, identity, pack_surrogate, remove_checkpoint, unpack_surrogate
from ..training.execution import autocast
from ..training.step_memory import available_bytes, fit
from ..training.trainer import Optimization
from ..utils.distributed import ALONE, Ranks
from ..utils.progress import Reporter, reporting
from ..utils.random_state import seeded
from ..utils.values import check, require
from .ratio_search import TARGET, check_search, search_ratio
from .settings import AUTO, MOST, CompileSettings, make_settings

if TYPE_CHECKING:
    from ..evaluation.certificate import Questions


@torch.inference_mode(False)
@torch.enable_grad()
def compile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    recipe: str = "default",
    queries: str | Path | Iterable[str] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 50,
    keep_checkpoint: bool = False,
    restart: bool = False,
    surrogates: str | os.PathLike | None = None,
    progress: bool | Reporter = True,
    distributed: bool = False,
    writer: WriterFactory = lora_compiler,
    certify: bool = True,
    questions: Questions | None = None,
    target: float | None = None,
    **settings: Any,
) -> Memory:
    """Compile ``text`` into K = ceil(tokens / ratio) buffer tokens that the frozen ``model`` reads instead of it.

    Latent Context Compilation, sections 3.2-3.5: a LoRA, on for text and buffer tokens only, is trained to make the
    model answer from the buffer's K and V as it answers from the text; then the LoRA is thrown away. The model is left
    exactly as it came, also when compile raises.

    Args:
        model: a causal language model that ``lcc.modeling.architecture`` accepts: see docs/models.md.
        tokenizer: the model's own, with a chat template.
        text: the document.
        recipe: ``default``, ``fast`` (110 steps, not 300), or ``paper`` (the paper's streams, steps and rate).
        queries: context-agnostic queries, see ``lcc.load_queries``; by default the package's own.
        checkpoint: a folder to resume from after a kill.
        checkpoint_every: steps between two checkpoints.
        keep_checkpoint: leave the finished checkpoint for ``lcc.remove_checkpoint``, until the memory is safely saved.
        restart: remove a checkpoint of another compilation, or a damaged one, instead of refusing it.
        surrogates: a folder where compilations share their surrogate data, which depends on neither ratio, writer nor
            learning rate; whoever needs it first makes it, and nothing removes it.
        progress: show a progress bar on stderr, or the reporter to show it with.
        distributed: share each step's samples among the processes of torch.distributed's default group, which all make
            this very call; each gets the memory, rank 0 alone writes the checkpoint.
        writer: what is trained to write the buffer's K and V; LCC's LoRA, or another ``lcc.compilers.lora.Writer``.
        certify: measure the memory beside the full text and nothing, and write that into it: ``memory.certificate``.
        questions: to measure it on, see ``lcc.evaluation.certificate.read_questions``; by default those that the model
            asked itself and that were held out.
        target: with ``ratio="auto"``, the share of the full text's score on those questions that the memory must keep,
            0.98 by default.
        **settings: fields of ``CompileSettings``: ratio, steps, seed and so on. ``ratio="auto"`` tries 32, 16, 8, 4 and
            2 until the target is met.

    Raises:
        InputError: the text, the model, the tokenizer, a setting or a question cannot be used.
        TargetError: no ratio meets the target; the error holds the memory that keeps most.
        DivergedError: the loss became NaN; the last checkpoint stands.
        MismatchError: the checkpoint folder belongs to another compilation, or the processes make different calls.
        MemoryFileError: a checkpoint cannot be read or written.
    """
    # It builds on lcc.evaluation, which builds on this file.
    from ..evaluation import certificate

    check("checkpoint_every", checkpoint_every, int)
    require(1 <= checkpoint_every <= MOST, "checkpoint_every", checkpoint_every, "at least 1")
    if not certify and questions is not None:
        raise InputError("questions are for the certificate: leave certify on, or leave them out")
    if settings.get("ratio") == AUTO:
        options: dict[str, Any] = {"recipe": recipe, "queries": queries, "questions": questions, "certify": certify}
        options |= {"checkpoint_every": checkpoint_every, "distributed": distributed, "writer": writer}
        options |= {"surrogates": surrogates, "restart": restart}
        return _search(model, tokenizer, text, target, checkpoint, keep_checkpoint, progress, options, settings)
    if target is not None:
        raise InputError('target is for ratio="auto": leave it out, or let compile choose the ratio')
    chosen = make_settings(recipe, **settings)
    ranks = Ranks.of_group() if distributed else ALONE
    model = loaded_model(model)
    check_architecture(model)
    model = share_weights(model)
    date = None if checkpoint is None else ranks.from_main(lambda: begun_on(checkpoint))
    context = build_context(
        model, tokenizer, text, chosen.ratio, chosen.max_response_tokens, date, chosen.parse_special_tokens
    )
    asked = load_queries(queries)
    given = None if questions is None else certificate.read_questions(questions, text, model, tokenizer)
    print_of = fingerprint(model, tokenizer)
    if is_sharded(model) and not (distributed and chosen.engine == "packed"):
        raise InputError("the model's weights are sharded: compile needs distributed=True and engine='packed'")
    chat = context.chat
    same = identity(chosen, context.sha256, print_of, asked) | {"writer": writer.__name__}
    if chat.date is not None:
        # What the template writes on another day is another chat, and the tokenizer's fingerprint is the same.
        same |= {"chat": [chat.prefix, chat.ask, chat.next_turn]}
    ranks.require_same(same)
    store = Checkpoint(Path(checkpoint), same, ranks, restart, chat.date) if checkpoint is not None else None
    shared = Checkpoint.shared(Path(surrogates), same, ranks, restart) if surrogates is not None else None
    with (
        reporting(ranks.main and progress) as reporter,
        seeded(model, chosen.seed),
        writer(model, context, chosen) as writing,
    ):
        written = write(writing, chosen, asked, reporter, store, checkpoint_every, ranks, shared)
    memory = _memory(model, context, written, chosen, print_of)
    if certify:
        with reporting(ranks.main and progress) as reporter:

            def measure() -> dict[str, Any]:
                taught, report = written.surrogate, reporter.count
                return certificate.measure(model, tokenizer, text, memory, taught, chosen, asked, given, report)

            memory = replace(memory, certificate=ranks.from_main(measure, together=is_sharded(model)))
    if store and ranks.main and not keep_checkpoint:
        remove_checkpoint(store.folder)
    return memory


def _search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    target: float | None,
    checkpoint: str | os.PathLike | None,
    keep_checkpoint: bool,
    progress: bool | Reporter,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> Memory:
    """``compile`` with ``options`` at one ratio after the other."""
    target = TARGET if target is None else target
    chosen = make_settings(options["recipe"], **settings | {"ratio": None})
    check_search(chosen, target, options["questions"] is not None, options["certify"])
    options = reread(options)
    folder = Path(checkpoint) if checkpoint is not None else None
    ranks = Ranks.of_group() if options["distributed"] else ALONE
    with (
        reporting(ranks.main and progress) as reporter,
        nullcontext(folder) if folder else TemporaryDirectory() as among_ratios,
    ):
        options["surrogates"] = options["surrogates"] or among_ratios

        def attempt(*, ratio: float, checkpoint: Path | None) -> Memory:
            own = {"ratio": ratio, "checkpoint": checkpoint, "keep_checkpoint": True, "progress": reporter}
            return compile(model, tokenizer, text, **settings | options | own)

        memory = search_ratio(attempt, len(ChatFormat.of(tokenizer).ids(text)), target, folder, reporter)
    if folder and ranks.main and not keep_checkpoint:
        remove_checkpoint(folder)
    return memory


@dataclass(frozen=True)
class Written:
    """What a writer wrote: B's K and V, keys unrotated, what it was taught, and the curve of ``Memory``."""

    kv: KV
    surrogate: Surrogate
    curve: list[dict[str, float]]


def write(
    writer: Writer,
    settings: CompileSettings,
    queries: list[str],
    reporter: Reporter,
    store: Checkpoint | None = None,
    checkpoint_every: int = 50,
    ranks: Ranks = ALONE,
    shared: Checkpoint | None = None,
) -> Written:
    """Make the surrogate data and train ``writer`` on it.

    Args:
        store: the compilation's own checkpoint.
        shared: where the surrogate data is kept, if not in ``store``.

    Raises:
        DivergedError: the loss became NaN; the last checkpoint stands.
        MismatchError: the checkpoint folder belongs to another compilation.
        MemoryFileError: a checkpoint cannot be read or written.
    """
    model = writer.model
    with autocast(model, settings):
        surrogate = surrogate_data(model, writer.context, settings, queries, shared or store, reporter, ranks)
        # What a layer of sharded weights takes while it runs cannot be told from what its backward keeps.
        free = None if is_sharded(model) else ranks.least(available_bytes(model.device))
        fitting = fit(writer, _most_rows(surrogate, settings), settings, free)
        optimization = Optimization(writer, surrogate, fitting, store, ranks)
        kv = optimization.run(reporter, checkpoint_every)
    return Written(kv, surrogate, optimization.curve)


def surrogate_data(
    model: PreTrainedModel,
    context: Context,
    settings: CompileSettings,
    queries: Sequence[str],
    store: Checkpoint | None,
    reporter: Reporter,
    ranks: Ranks = ALONE,
) -> Surrogate:
    """What a text is compiled with: from ``store``, or made now by rank 0.

    Args:
        model: frozen, no adapter active.
    """
    budget = settings.teacher_gigabytes * 2**30
    stored = store.load_surrogate(model.device, budget) if store else None
    if stored is not None:
        return stored

    def make() -> Surrogate:
        # Seeded anew, so that the data is the same whatever has been drawn before.
        with torch.no_grad(), seeded(model, settings.seed):
            text_kv = read_text(model, context.context_ids, read_text(model, context.prefix_ids))
            folder = store.folder if store else None
            made = build_surrogate(model, context, text_kv, settings, queries, reporter.count, folder)
        if store:
            store.save_surrogate(made)
        return made

    if ranks.count == 1:
        return make()
    packed = ranks.from_main(lambda: pack_surrogate(make()), together=is_sharded(model))
    return unpack_surrogate(*packed, model.device, budget)


def _most_rows(surrogate: Surrogate, settings: CompileSettings) -> int:
    """Rows of a step's samples, were its queries the longest."""
    queries = sorted((len(sample.input_ids) for sample in surrogate.train), reverse=True)
    return len(surrogate.reconstruction.input_ids) + sum(queries[: settings.batch])


def _memory(
    model: PreTrainedModel, context: Context, written: Written, settings: CompileSettings, print_of: dict[str, str]
) -> Memory:
    memory = Memory(
        kv=written.kv,
        prefix_ids=context.prefix_ids if settings.keep_prefix else (),
        ratio=settings.ratio,
        source_tokens=len(context.context_ids),
        source_sha256=context.sha256,
        rope=dict(model.config.rope_parameters),
        fingerprint=print_of,
        settings=asdict(settings),
        curve=written.curve,
        questions=tuple(sorted(written.surrogate.self_questions, key=turns_of)),
        date=context.chat.date,
    )
    return memory.to(model.device, model.dtype)
