"""What a compilation will take, known before it runs: tokens, steps, FLOPs, memory and time on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import Compiler
from ..compilers.lora import LoraCompiler
from ..compilers.registry import DEFAULT, get
from ..data.sections import split_context
from ..errors import InputError
from ..modeling.architecture import check_architecture
from ..modeling.model_copy import share_weights
from ..modeling.weights import loaded_model
from ..text.context import Context, build_context
from ..text.queries import SELF, load_queries
from ..training.distractors import asked_samples
from ..training.execution import resolve_auto
from ..training.step_memory import CHUNK, HEADROOM, step_memory
from ..utils.device_memory import available_bytes, gibibytes
from ..utils.random_state import seeded
from .distractors import Given, tokens_beside
from .flops import StepFlops, step_flops
from .geometry import Geometry, geometry, sample_count, step_layout
from .plan_figures import Plan
from .probe import Probe, probe
from .settings import CompileSettings, make_settings

# LoRA and buffer embeddings, each with its gradient, its best copy and two moments.
COPIES = 5


@torch.inference_mode(False)
@torch.enable_grad()
def plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    recipe: str = "default",
    compiler: str | Compiler = DEFAULT,
    queries: str | Path | Iterable[str] | None = None,
    real_steps: bool = False,
    distractors: Given | None = None,
    **settings: Any,
) -> Plan:
    """Say what ``lcc.compile`` with the same arguments takes; the model is left as it came.

    The memory estimate comes first. If it fits, a few answers and steps of the model's first layers are timed on the
    text itself; if not, on as much of it as fits, and times grow with the FLOPs. What held-out measurements and the
    certificate take is left out.

    Args:
        real_steps: time steps with all layers, and measure the memory that one takes.

    Raises:
        InputError: the text, the model, the tokenizer or a setting cannot be used, or the compiler has no steps that
            read the text.
    """
    chosen, method = make_settings(recipe, compiler, **settings), get(compiler)
    if not isinstance(method, LoraCompiler):
        raise InputError(f"a dry run counts the steps of the compiler 'lcc', and this one is {method.name!r}")
    model = loaded_model(model)
    check_architecture(model)
    model = share_weights(model)
    context = build_context(model, tokenizer, text, chosen.ratio, None, chosen.data.parse_special_tokens)
    context = split_context(model, context, chosen.ratio, chosen.data)
    longest = max(context.parts, key=lambda part: len(part.context_ids))
    fitted = chosen.for_text(len(longest.context_ids))
    asked = load_queries(None if queries == SELF else queries, tokenizer)
    samples = sample_count(fitted, asked)
    query_tokens = math.ceil(mean(len(context.chat.query_ids(query)) for query in asked[:64]))
    beside = context.buffer - longest.buffer
    if not context.sections:
        beside = tokens_beside(model, tokenizer, context, fitted, method, distractors)
    parts = len(context.parts)
    estimate = _estimate(model, longest, method, fitted, samples, query_tokens, beside, parts)
    probed = probe(model, estimate.probed, method, estimate.settled, asked, samples, real_steps)
    one = _plan(model, longest, chosen, samples, estimate, probed)
    return one.in_sections(context) if context.sections else one


@dataclass(frozen=True)
class _Estimate:
    """What is known before any step runs.

    Attributes:
        settled: the settings with ``auto`` resolved.
        probed: the text, or as much of it as fits.
        needed, state, teacher: bytes of a step, of parameters and optimiser, and of the teacher's states.
    """

    settled: CompileSettings
    probed: Context
    needed: int
    state: int
    teacher: int
    free: int | None
    advice: tuple[str, ...]


def _estimate(
    model: PreTrainedModel,
    context: Context,
    compiler: LoraCompiler,
    chosen: CompileSettings,
    samples: int,
    query_tokens: int,
    beside: int,
    parts: int,
) -> _Estimate:
    free, longest = available_bytes(model.device), chosen.data.max_response_tokens
    own: Any = chosen.compiler
    with seeded(model.device, chosen.seed), compiler.trainable(model, context, own, chosen.seed) as memory:
        groups = memory.parameter_groups(chosen.training)
        state = COPIES * sum(parameter.nbytes for group in groups for parameter in group["params"])

        def worst(tried: CompileSettings, context: Context = context) -> Geometry:
            more = asked_samples(tried.training) if beside and parts == 1 else 0
            return geometry(context, tried, samples, query_tokens, longest, more, parts)

        @cache
        def step_bytes(tried: CompileSettings, context: Context = context) -> int:
            layout = step_layout(context, worst(tried, context), tried)
            return step_memory(model, layout, tried.execution, memory.adapts_samples, beside).total

        execution = resolve_auto(memory, sum(worst(chosen).segments), chosen.execution, free, beside)
        settled = replace(chosen, execution=execution)
        teacher = _teacher_bytes(model, context, samples, longest)
        advice = _advice(step_bytes, settled, free, state + teacher)
        probed = context
        while free is not None and len(probed.context_ids) > 4 * chosen.ratio and advice:
            if step_bytes(settled, probed) + state + teacher <= HEADROOM * free:
                break
            probed = _shortened(probed, chosen.ratio)
        return _Estimate(settled, probed, step_bytes(settled), state, teacher, free, advice)


def _plan(
    model: PreTrainedModel,
    context: Context,
    chosen: CompileSettings,
    samples: int,
    estimate: _Estimate,
    measured: Probe,
) -> Plan:
    """The plan, from what is estimated and what was measured on ``estimate.probed``."""
    settled, probed, steps, before = estimate.settled, estimate.probed, chosen.training.steps, chosen.flat()
    flops = _flops(model, context, settled, samples, measured).total
    timed = settled.replace(batch=measured.step_samples)
    step_seconds = measured.step_seconds * flops / _flops(model, probed, timed, samples, measured).total
    step_bytes = measured.step_bytes if probed is context else None
    expected = _expected(context, settled, samples, measured)
    return Plan(
        text_tokens=len(context.context_ids),
        buffer_tokens=context.buffer,
        prefix_tokens=len(context.prefix_ids),
        queries=samples,
        response_tokens=round(measured.response_tokens, 1),
        step_tokens=len(context.context_ids) + context.buffer + sum(expected.segments),
        steps=steps,
        step_flops=flops,
        total_flops=flops * steps,
        step_bytes=max(estimate.needed, step_bytes or 0),
        measured_step_bytes=step_bytes,
        state_bytes=estimate.state,
        teacher_bytes=estimate.teacher,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        available_bytes=estimate.free,
        probed_tokens=len(probed.context_ids),
        teacher_seconds=round(measured.teacher_seconds, 2),
        step_seconds=round(step_seconds, 4),
        total_seconds=round(measured.teacher_seconds + step_seconds * steps, 1),
        device=_device_name(model.device),
        settled={name: value for name, value in settled.flat().items() if before[name] != value},
        advice=estimate.advice,
    )


def _expected(context: Context, settings: CompileSettings, samples: int, measured: Probe) -> Geometry:
    return geometry(context, settings, samples, round(measured.query_tokens), max(1, round(measured.response_tokens)))


def _flops(
    model: PreTrainedModel, context: Context, settings: CompileSettings, samples: int, measured: Probe
) -> StepFlops:
    step = _expected(context, settings, samples, measured)
    lengths = len(context.prefix_ids), len(context.context_ids), context.buffer
    return step_flops(model, *lengths, step.segments, step.supervised, settings)


def _teacher_bytes(model: PreTrainedModel, context: Context, samples: int, response_tokens: int) -> int:
    tokens = len(context.context_ids) + 1 + samples * response_tokens
    return tokens * model.config.hidden_size * model.dtype.itemsize


def _shortened(context: Context, ratio: float) -> Context:
    """The first half of the text."""
    ids = context.context_ids[: len(context.context_ids) // 2]
    return replace(context, context_ids=ids, buffer=math.ceil(len(ids) / ratio))


def _advice(
    step_bytes: Callable[[CompileSettings], int], settings: CompileSettings, free: int | None, held: int
) -> tuple[str, ...]:
    """The least changes with which a step fits beside ``held`` bytes; empty if none is needed."""
    if free is None or step_bytes(settings) + held <= HEADROOM * free:
        return ()
    changes: dict[str, Any] = {}
    batch = settings.training.samples
    batches = [batch >> shift for shift in range(1, batch.bit_length())]
    ladder: list[tuple[str, Any]] = [("engine", "packed"), ("gradient_checkpointing", True), ("encode_chunk", CHUNK)]
    ladder += [("batch", smaller) for smaller in batches]
    before = settings.flat()
    for name, value in ladder:
        if before[name] == value:
            continue
        changes[name] = value
        needed = step_bytes(settings.replace(**changes)) + held
        if needed <= HEADROOM * free:
            flags = " ".join(f"--set {key}={str(changed).lower()}" for key, changed in changes.items())
            return (f"{flags}: needs {gibibytes(needed)}",)
    return (
        f"no setting is enough ({gibibytes(step_bytes(settings.replace(**changes)) + held)} with all of them): split "
        "the text, free memory, or spread the weights over GPUs with accelerate launch --use_fsdp --fsdp_version 2",
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
