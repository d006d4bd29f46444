"""What a compilation costs on this machine, from little work: a few answers, and steps of a model with few layers.

A step's time grows with the layers, so steps with two numbers of layers tell it. Real steps are run when they are asked
for: they also tell how much memory a step takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from transformers import PreTrainedModel

from ..compilers.base import TrainedCompiler
from ..data.reconstruction import longest_repetition
from ..data.samples import Sample
from ..data.teacher import TELLING, Teacher
from ..data.teacher_states import TeacherStates
from ..modeling.decoding import Prompt, decode
from ..modeling.model_copy import with_first_layers
from ..modeling.prefill import prefill
from ..text.chat_format import Query
from ..text.context import Context
from ..training.execution import autocast
from ..training.loss import step_loss
from ..utils.device_memory import peak_bytes, silent_profiler
from ..utils.random_state import seeded
from .distillation import teacher_model
from .geometry import step_queries
from .settings import CompileSettings

# Real steps that are timed, the numbers of layers of steps that tell what a real one takes, and steps of each.
STEPS, LAYERS, SHORT_STEPS = 3, (1, 3), 1
# Samples of such a short step, beside the reconstruction.
SHORT_BATCH = 8
# Queries that are answered, in so many tokens at most: an answer that does not end by then counts as the longest one.
# And rows and tokens by which writing is timed.
ANSWERS, LONGEST, ROWS, WRITTEN = 8, 24, 128, 2
# What a question that the model asks itself takes: tokens of prompt and question, and the share that is kept.
ASKED_PROMPT, ASKED, KEPT = 24, 12, 0.7


@dataclass(frozen=True)
class TeacherCost:
    """Seconds of the teacher's work: reading the text, answering a query, and asking a question that is kept."""

    reading: float
    answering: float
    asking: float

    def seconds(self, samples: int, asked: int) -> float:
        """Of the data: ``samples`` answers, ``asked`` of them to questions of the model's own."""
        return self.reading + samples * self.answering + asked * self.asking


@dataclass(frozen=True)
class Probe:
    """Measured on the text itself.

    Attributes:
        query_tokens, response_tokens: means over a few answers of the frozen model.
        teacher_seconds: of asking and of all teacher responses.
        step_seconds: of a step with ``step_samples`` queries beside the reconstruction.
        step_bytes: what a real step holds at its worst beyond weights and optimizer state; None where none ran.
    """

    query_tokens: float
    response_tokens: float
    teacher_seconds: float
    step_seconds: float
    step_samples: int
    step_bytes: int | None


def probe(
    model: PreTrainedModel,
    context: Context,
    compiler: TrainedCompiler,
    settings: CompileSettings,
    queries: Sequence[str],
    samples: int,
    real_steps: bool = False,
) -> Probe:
    """Run a compilation in miniature; the model is left as it came.

    Args:
        queries: context-agnostic ones.
        samples: queries of all streams that the teacher would answer.
        real_steps: run steps with all layers.
    """
    with seeded(model.device, settings.seed):
        answered, cost = teacher_cost(model, context, settings, queries)
        queries_of_step = step_queries(settings, samples)
        queries_of_step = queries_of_step if real_steps else min(SHORT_BATCH, queries_of_step)
        batch = [_repetition(model, context, settings), *islice(cycle(answered), queries_of_step)]
        if real_steps:
            step_seconds, step_bytes = _steps(model, context, compiler, settings, batch, STEPS, measure_bytes=True)
        else:
            step_seconds, step_bytes = _extrapolated(model, context, compiler, settings, batch), None
    return Probe(
        query_tokens=statistics.mean(len(sample.query_ids) for sample in answered),
        response_tokens=statistics.mean(_response_tokens(sample, settings) for sample in answered),
        teacher_seconds=cost.seconds(samples, settings.effective_data.asked),
        step_seconds=step_seconds,
        step_samples=queries_of_step,
        step_bytes=step_bytes,
    )


@torch.no_grad()
def teacher_cost(
    model: PreTrainedModel, context: Context, settings: CompileSettings, queries: Sequence[str]
) -> tuple[list[Sample], TeacherCost]:
    """A few answered queries, and what the teacher takes for more."""
    teacher_copy, device = teacher_model(model, settings), model.device
    prefix = context.read_prefix(teacher_copy)
    text_kv, reading = _timed(lambda: prefill(teacher_copy, context.context_ids, prefix), device)
    longest = min(LONGEST, settings.data.max_response_tokens)
    teacher = Teacher(teacher_copy, context, text_kv, longest, TeacherStates(math.inf))
    few: dict[Query, float] = dict.fromkeys(queries[:ANSWERS], 1.0)
    answered, _ = _timed(lambda: teacher.answer("general", few, lambda _: None), device)
    prompts = [Prompt((sample.query_ids[-1],)) for sample in islice(cycle(answered), ROWS)]
    _, writing = _timed(lambda: list(decode(teacher_copy, text_kv, prompts, lambda _: False, WRITTEN)), device)

    read_a_token, write_a_token = reading / len(context.context_ids), writing / (ROWS * (WRITTEN + 1))
    query = statistics.mean(len(sample.query_ids) for sample in answered)
    response = statistics.mean(_response_tokens(sample, settings) for sample in answered)
    answering = query * read_a_token + response * write_a_token
    asking = (ASKED_PROMPT * read_a_token + ASKED * write_a_token) / KEPT
    scoring = (query + TELLING) * read_a_token
    return answered, TeacherCost(reading, answering, asking + scoring)


def _response_tokens(sample: Sample, settings: CompileSettings) -> int:
    """Tokens of the whole response, of which the sample may have the first ones alone."""
    tokens, longest = len(sample.response_ids), settings.data.max_response_tokens
    return longest + 1 if tokens > min(LONGEST, longest) else tokens


def _repetition(model: PreTrainedModel, context: Context, settings: CompileSettings) -> Sample:
    """The longest repetition. What its teacher says changes no time."""
    longest = longest_repetition(context, settings.data)
    shape = len(longest.response_ids), model.config.hidden_size
    return replace(longest, teacher_hidden=torch.zeros(shape, dtype=model.dtype, device=model.device))


def _extrapolated(
    model: PreTrainedModel,
    context: Context,
    compiler: TrainedCompiler,
    settings: CompileSettings,
    batch: Sequence[Sample],
) -> float:
    """Seconds of a step with all layers, from steps with few."""
    few, more = (min(layers, model.config.num_hidden_layers) for layers in LAYERS)
    taken = {}
    # The first step of all warms up what the others run as well.
    for layers, first in ((few, True), (more, few == more)):
        shallow = with_first_layers(model, layers)
        taken[layers], _ = _steps(shallow, context, compiler, settings, batch, SHORT_STEPS, warm_up=first)
    if few == more:
        return taken[few]
    a_layer = (taken[more] - taken[few]) / (more - few)
    return taken[more] + (model.config.num_hidden_layers - more) * max(0.0, a_layer)


def _steps(
    model: PreTrainedModel,
    context: Context,
    compiler: TrainedCompiler,
    settings: CompileSettings,
    batch: Sequence[Sample],
    steps: int,
    measure_bytes: bool = False,
    warm_up: bool = False,
) -> tuple[float, int | None]:
    """Seconds of a step, and the bytes that one holds at its worst."""
    training, execution = settings.training, settings.execution
    with (
        compiler.trainable(model, context, settings.compiler, settings.seed) as memory,
        autocast(model, execution),
    ):
        parameters = [parameter for group in memory.parameter_groups(training) for parameter in group["params"]]

        def step() -> object:
            loss = step_loss(memory, batch, training, execution)
            return torch.autograd.grad(loss, parameters, materialize_grads=True)

        step_bytes = None
        if measure_bytes:
            with silent_profiler():
                step_bytes = peak_bytes(step, model.device.type)
        elif warm_up:
            step()
        return statistics.median(_timed(step, model.device)[1] for _ in range(steps)), step_bytes


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What ``call`` returns, and its seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began
