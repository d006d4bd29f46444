"""What a compilation costs on this machine: the teacher answers a few queries, then a few real steps run."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, cycle, islice
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from ..compilers.lora import Compiler, lora_model, read_text
from ..data.self_study import ask_questions, text_pieces
from ..data.synthesis import Surrogate, build_surrogate
from ..modeling.kv import KV
from ..text.chat_format import Query
from ..text.context import Context
from ..training.execution import autocast
from ..training.loss import step_loss
from ..utils.random_state import seeded
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
    model: PreTrainedModel, context: Context, settings: CompileSettings, queries: list[str], samples: int
) -> Probe:
    """Run a compilation in miniature; the model is left as it came.

    Args:
        queries: context-agnostic ones.
        samples: queries of all streams that the teacher would answer.
    """
    with seeded(model, settings.seed), lora_model(model, settings) as layers:
        compiler = Compiler(model, context, layers)
        with autocast(model, settings):
            with torch.no_grad():
                text_kv = read_text(model, context.context_ids, compiler.prefix)
                asked, asking = _timed(lambda: _ask(model, context, text_kv, settings), model.device)
                count = min(ANSWERS, samples)
                surrogate, answering = _timed(
                    lambda: _answer(model, context, text_kv, settings, [*asked, *queries], count), model.device
                )
            batch = [surrogate.reconstruction, *islice(cycle(surrogate.train), step_queries(settings, samples))]

            def step() -> object:
                return torch.autograd.grad(
                    step_loss(compiler, batch, settings), [compiler.buffer, *compiler.lora], materialize_grads=True
                )

            with _silent_profiler():
                step_bytes = peak_bytes(step, model.device.type)
            seconds = [_timed(step, model.device)[1] for _ in range(STEPS)]
    pieces = len(text_pieces(context.context_ids, settings.self_study_piece))
    return Probe(
        query_tokens=statistics.mean(len(sample.query_ids) for sample in surrogate.train),
        response_tokens=statistics.mean(len(sample.response_ids) for sample in surrogate.train),
        asking_seconds=asking * pieces,
        answering_seconds=answering * samples / count,
        step_seconds=statistics.median(seconds),
        step_bytes=step_bytes,
    )


def step_queries(settings: CompileSettings, samples: int) -> int:
    """Queries of a step, at most, when the teacher has answered ``samples``."""
    return min(settings.batch, samples - int(samples * settings.held_out))


def _ask(model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings) -> list[Query]:
    """The questions about the first piece of the text, as many as each piece gets."""
    if not (settings.self_study_questions and settings.self_study_weight):
        return []
    pieces = text_pieces(context.context_ids, settings.self_study_piece)
    first = replace(context, context_ids=tuple(pieces[0]))
    share = replace(settings, self_study_questions=-(-settings.self_study_questions // len(pieces)))
    return list(ask_questions(model, first, text_kv, share, lambda *_: None))


def _answer(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings, queries: list[str], count: int
) -> Surrogate:
    few = replace(settings, general_queries=count, general_weight=1.0, self_study_questions=0, held_out=0.0)
    return build_surrogate(model, context, text_kv, few, queries, lambda *_: None)


@contextmanager
def _silent_profiler() -> Iterator[None]:
    """Keep what torch's profiler says of its own starting and stopping off the terminal."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _timed(call: Callable, device: torch.device) -> tuple:
    """What ``call`` returns, and its seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes of tensors, internal ones too, that ``call`` holds at its worst beyond those held before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in memory), initial=0))
