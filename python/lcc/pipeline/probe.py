"""What a compilation costs on this machine: the teacher answers a few queries, then a few real steps run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch
from transformers import PreTrainedModel

from ..compilers.base import TrainedCompiler
from ..data.samples import DistillationData
from ..data.self_study import ask_questions, text_pieces
from ..data.synthesis import synthesize
from ..data.teacher_states import TeacherStates
from ..modeling.kv import KV
from ..modeling.prefill import prefill
from ..text.chat_format import Query
from ..text.context import Context
from ..training.execution import autocast
from ..training.loss import step_loss
from ..utils.device_memory import peak_bytes, silent_profiler
from ..utils.random_state import seeded
from .geometry import step_queries
from .settings import CompileSettings

# Steps that are timed, and queries that the teacher answers.
STEPS, ANSWERS = 3, 64


@dataclass(frozen=True)
class Probe:
    """Measured on the text itself.

    Attributes:
        query_tokens, response_tokens: means over the answers of the frozen model.
        asking_seconds: of all self-study questions, from those about one piece of the text.
        answering_seconds: of all teacher responses, from the first few of them.
        step_seconds: median of a few steps with as many samples as a real one.
        step_bytes: what such a step holds at its worst beyond weights and optimizer state.
    """

    query_tokens: float
    response_tokens: float
    asking_seconds: float
    answering_seconds: float
    step_seconds: float
    step_bytes: int


def probe(
    model: PreTrainedModel,
    context: Context,
    compiler: TrainedCompiler,
    settings: CompileSettings,
    queries: list[str],
    samples: int,
) -> Probe:
    """Run a compilation in miniature; the model is left as it came.

    Args:
        queries: context-agnostic ones.
        samples: queries of all streams that the teacher would answer.
    """
    training, execution, seed = settings.training, settings.execution, settings.seed
    with (
        seeded(model.device, seed),
        compiler.trainable(model, context, settings.compiler, seed) as memory,
        autocast(model, execution),
    ):
        with torch.no_grad():
            text_kv = prefill(model, context.context_ids, memory.prefix)
            asked, asking = _timed(lambda: _ask(model, context, text_kv, settings), model.device)
            count = min(ANSWERS, samples)
            data, answering = _timed(
                lambda: _answer(model, context, text_kv, settings, [*asked, *queries], count), model.device
            )
        batch = [data.reconstruction, *islice(cycle(data.train), step_queries(settings, samples))]
        parameters = [parameter for group in memory.parameter_groups(training) for parameter in group["params"]]

        def step() -> object:
            loss = step_loss(memory, batch, training, execution)
            return torch.autograd.grad(loss, parameters, materialize_grads=True)

        with silent_profiler():
            step_bytes = peak_bytes(step, model.device.type)
        seconds = [_timed(step, model.device)[1] for _ in range(STEPS)]
    pieces = len(text_pieces(context.context_ids, settings.data.self_study_piece))
    return Probe(
        query_tokens=statistics.mean(len(sample.query_ids) for sample in data.train),
        response_tokens=statistics.mean(len(sample.response_ids) for sample in data.train),
        asking_seconds=asking * pieces,
        answering_seconds=answering * samples / count,
        step_seconds=statistics.median(seconds),
        step_bytes=step_bytes,
    )


def _ask(model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings) -> list[Query]:
    """The questions about the first piece of the text, as many as each piece gets."""
    data = settings.effective_data
    if not data.self_study_questions:
        return []
    pieces = text_pieces(context.context_ids, data.self_study_piece)
    first = replace(context, context_ids=tuple(pieces[0]))
    share = replace(data, self_study_questions=-(-data.self_study_questions // len(pieces)))
    return list(ask_questions(model, first, text_kv, share, settings.seed, lambda *_: None))


def _answer(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings, queries: list[str], count: int
) -> DistillationData:
    few = replace(settings.data, general_queries=count, self_study_questions=0, held_out=0.0)
    states = TeacherStates(settings.execution.teacher_bytes)
    return synthesize(model, context, text_kv, few, queries, settings.seed, lambda *_: None, states)


def _timed(call: Callable, device: torch.device) -> tuple:
    """What ``call`` returns, and its seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began
