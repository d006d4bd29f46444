"""What a compilation will take, known before it runs: tokens, steps, FLOPs, memory and time on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import lcc_kernels as lk

from ..compilers.lora import Compiler, lora_model
from ..data.synthesis import REPEAT_REQUEST
from ..modeling.architecture import check_architecture
from ..modeling.model_copy import share_weights
from ..modeling.weights import loaded_model
from ..text.context import Context, build_context
from ..text.queries import load_queries
from ..training.step_memory import CHUNK, HEADROOM, available_bytes, fit, step_memory
from ..utils.random_state import seeded
from .flops import StepFlops, step_flops
from .probe import Probe, probe, step_queries
from .settings import CompileSettings, make_settings

# LoRA and buffer embeddings, each with its gradient, its best copy and two moments.
COPIES = 5


@dataclass(frozen=True)
class Plan:
    """What ``lcc.compile`` of a text takes; bytes, seconds and floating point operations.

    Attributes:
        text_tokens, buffer_tokens, prefix_tokens: C, B and P.
        queries: that the teacher answers, of all streams; some are held out of training.
        response_tokens: mean length of the frozen model's first answers.
        step_tokens: rows that a step runs.
        steps: at most; an early stop ends sooner.
        step_flops, total_flops: of a step, and of all steps, forward and backward.
        step_bytes: peak of a step beyond weights and optimizer state: the estimate with full-length responses, or what
            was measured if that is more.
        measured_step_bytes: the peak of a real step; None where the estimate says that it would not fit.
        state_bytes: LoRA and buffer embeddings with gradients, best copy and AdamW moments.
        teacher_bytes: the teacher's hidden states.
        weight_bytes: of the model, which is loaded already.
        available_bytes: free beside it on the device; None where it cannot be asked.
        probed_tokens: tokens of text in the steps that were timed: fewer than ``text_tokens`` if it does not fit.
        teacher_seconds, step_seconds, total_seconds: expected on this machine.
        settled: what ``auto`` settings come to.
        advice: what to change if it does not fit.
    """

    text_tokens: int
    buffer_tokens: int
    prefix_tokens: int
    queries: int
    response_tokens: float
    step_tokens: int
    steps: int
    step_flops: int
    total_flops: int
    step_bytes: int
    measured_step_bytes: int | None
    state_bytes: int
    teacher_bytes: int
    weight_bytes: int
    available_bytes: int | None
    probed_tokens: int
    teacher_seconds: float
    step_seconds: float
    total_seconds: float
    device: str
    settled: dict[str, Any]
    advice: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        """Beyond the weights, at the worst moment."""
        return self.step_bytes + self.state_bytes + self.teacher_bytes

    @property
    def fits(self) -> bool:
        """Whether the free memory is enough, as far as is known."""
        return not self.advice

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"needed_bytes": self.needed_bytes, "fits": self.fits}


@dataclass(frozen=True)
class Geometry:
    """The samples of one step: tokens of each, and how many tokens they supervise in all."""

    segments: tuple[int, ...]
    supervised: int


@torch.inference_mode(False)
@torch.enable_grad()
def plan(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    recipe: str = "default",
    queries: str | Path | Iterable[str] | None = None,
    **settings: Any,
) -> Plan:
    """Say what ``lcc.compile`` with the same arguments takes; the model is left as it came.

    The memory estimate comes first. If it fits, a few real steps are timed on the text itself; if not, on as much of
    it as fits, and times grow with the FLOPs. Time spent on held-out measurements and the certificate is left out.

    Raises:
        InputError: the text, the model, the tokenizer or a setting cannot be used.
    """
    chosen = make_settings(recipe, **settings)
    model = loaded_model(model)
    check_architecture(model)
    model = share_weights(model)
    context = build_context(
        model, tokenizer, text, chosen.ratio, chosen.max_response_tokens, None, chosen.parse_special_tokens
    )
    asked = load_queries(queries)
    samples = _samples(chosen, asked)
    query_tokens = math.ceil(mean(len(context.chat.query_ids(query)) for query in asked[:64]))
    free = available_bytes(model.device)
    with seeded(model, chosen.seed), lora_model(model, chosen) as layers:
        compiler = Compiler(model, context, layers)
        state = COPIES * sum(p.nbytes for p in (compiler.buffer, *compiler.lora))

        def step_bytes(tried: CompileSettings, context: Context = context) -> int:
            worst = geometry(context, tried, samples, query_tokens, tried.max_response_tokens)
            return step_memory(model, _layout(context, worst, tried), tried).total

        worst = geometry(context, chosen, samples, query_tokens, chosen.max_response_tokens)
        settled = fit(compiler, sum(worst.segments), chosen, free)
        needed = step_bytes(settled)
        teacher = _teacher_bytes(model, context, samples, chosen.max_response_tokens)
        advice = _advice(step_bytes, settled, free, state + teacher)
        probed = context
        while free is not None and len(probed.context_ids) > 4 * chosen.ratio and advice:
            if step_bytes(settled, probed) + state + teacher <= HEADROOM * free:
                break
            probed = _shortened(probed, chosen.ratio)
    found = probe(model, probed, settled, asked, samples)
    measured = found.step_bytes if probed is context else None
    flops = _flops(model, context, settled, samples, found)
    step_seconds = found.step_seconds * flops.total / _flops(model, probed, settled, samples, found).total
    teacher_seconds = (
        found.asking_seconds * len(context.context_ids) / len(probed.context_ids) + found.answering_seconds
    )
    expected = _expected(context, settled, samples, found)
    return Plan(
        text_tokens=len(context.context_ids),
        buffer_tokens=context.buffer,
        prefix_tokens=len(context.prefix_ids),
        queries=samples,
        response_tokens=round(found.response_tokens, 1),
        step_tokens=len(context.context_ids) + context.buffer + sum(expected.segments),
        steps=chosen.steps,
        step_flops=flops.total,
        total_flops=flops.total * chosen.steps,
        step_bytes=max(needed, measured or 0),
        measured_step_bytes=measured,
        state_bytes=state,
        teacher_bytes=teacher,
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        available_bytes=free,
        probed_tokens=len(probed.context_ids),
        teacher_seconds=round(teacher_seconds, 2),
        step_seconds=round(step_seconds, 4),
        total_seconds=round(teacher_seconds + step_seconds * chosen.steps, 1),
        device=_device_name(model.device),
        settled={name: value for name, value in asdict(settled).items() if getattr(chosen, name) != value},
        advice=advice,
    )


def geometry(
    context: Context, settings: CompileSettings, samples: int, query_tokens: int, response_tokens: int
) -> Geometry:
    """The samples of a step: the reconstruction, if it has weight, and a batch of queries of these mean lengths."""
    batch = step_queries(settings, samples)
    repeat = len(context.chat.query_ids(REPEAT_REQUEST)) + len(context.context_ids)
    repeats = bool(settings.reconstruction_weight)
    segments = (repeat,) * repeats + (query_tokens + response_tokens - 1,) * batch
    return Geometry(segments, repeats * (len(context.context_ids) + 1) + batch * response_tokens)


def _expected(context: Context, settings: CompileSettings, samples: int, found: Probe) -> Geometry:
    return geometry(context, settings, samples, round(found.query_tokens), max(1, round(found.response_tokens)))


def _flops(
    model: PreTrainedModel, context: Context, settings: CompileSettings, samples: int, found: Probe
) -> StepFlops:
    step = _expected(context, settings, samples, found)
    lengths = len(context.prefix_ids), len(context.context_ids), context.buffer
    return step_flops(model, *lengths, step.segments, step.supervised, settings)


def _samples(settings: CompileSettings, queries: Sequence[str]) -> int:
    """Queries of all streams, if the model asks itself as many distinct questions as it should."""
    general = min(settings.general_queries, len(set(queries))) if settings.general_weight else 0
    return general + (settings.self_study_questions if settings.self_study_weight else 0)


def _layout(context: Context, step: Geometry, settings: CompileSettings) -> lk.BottleneckLayout:
    lengths = len(context.prefix_ids), len(context.context_ids), context.buffer
    return lk.BottleneckLayout(*lengths, step.segments, settings.keep_prefix)


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
    batches = [settings.batch >> shift for shift in range(1, settings.batch.bit_length())]
    ladder: list[tuple[str, Any]] = [("engine", "packed"), ("gradient_checkpointing", True), ("encode_chunk", CHUNK)]
    ladder += [("batch", batch) for batch in batches]
    for name, value in ladder:
        if getattr(settings, name) == value:
            continue
        changes[name] = value
        needed = step_bytes(replace(settings, **changes)) + held
        if needed <= HEADROOM * free:
            flags = " ".join(f"--set {key}={str(changed).lower()}" for key, changed in changes.items())
            return (f"{flags}: needs {gibibytes(needed)}",)
    return (
        f"no setting is enough ({gibibytes(step_bytes(replace(settings, **changes)) + held)} with all of them): split "
        "the text, free memory, or spread the weights over GPUs with accelerate launch --use_fsdp --fsdp_version 2",
    )


def gibibytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"
