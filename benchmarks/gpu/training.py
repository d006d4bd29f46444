"""A step and a whole compilation in the shapes of real models. Weights are random: time and memory do not mind."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, replace
from functools import partial

import torch
from transformers import PreTrainedModel

import lcc
from benchmarks.common.models import random_model, tokenizer_of
from benchmarks.common.results_file import Row
from benchmarks.common.timing import queued_seconds
from benchmarks.compile import step_speed
from lcc.synthetic.people import document
from lcc.training.execution import resolve_auto
from lcc.utils.device_memory import available_bytes

from .case import Case, Scale

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 1024,
}  # fmt: skip
RATIO = 16


def cases(scale: Scale) -> list[Case]:
    """Steps at 8,192 and 32,768 tokens, and a compilation with the default recipe's batch."""
    steps = [("llama-8b-shape", 8192), ("smollm2-135m-shape", 4096), ("llama-8b-shape", 32768)]
    if scale.tiny:
        steps = [("llama-8b-shape", 64)]
    found = [Case(f"step {shape} {context}", partial(_step, scale, shape, context)) for shape, context in steps]
    return [*found[:2], Case("compile smollm2-135m-shape", partial(_compile, scale)), *found[2:]]


def _step(scale: Scale, shape: str, context: int) -> Row:
    """Forward and backward of one packed step: half of its samples reconstruct, half answer."""
    batch, response = ("4", "4") if scale.tiny else ("64", "64")
    model = _model(scale, shape)
    arguments = step_speed.parse(
        ["--model", shape, "--context", str(context), "--ratio", str(RATIO), "--batch", batch, "--response", response]
    )
    with step_speed.prepare(model, arguments) as prepared:
        tokens = sum(len(sample.input_ids) for sample in prepared.samples)
        execution = resolve_auto(prepared.memory, tokens, prepared.settings.execution, available_bytes(model.device))
        job = replace(prepared, settings=prepared.settings.replace(**asdict(execution)))
        _forget_peak(scale)
        seconds = queued_seconds(partial(step_speed.packed, job), scale.device)
        work = step_speed.flops(job)["packed"]
    return _peak(scale) | {
        "seconds": seconds.device, "host_seconds": seconds.host, "tflops": work / seconds.device / 1e12,
        "rows": context + context // RATIO + tokens, "checkpointing": execution.gradient_checkpointing,
        "encode_chunk": execution.encode_chunk,
    }  # fmt: skip


def _compile(scale: Scale) -> Row:
    """``lcc.compile`` from the text to the memory. Random weights ask no questions: general queries alone."""
    model = _model(scale, "smollm2-135m-shape")
    text = document(random.Random(0), people=2 if scale.tiny else 20, attributes=3 if scale.tiny else 7).text
    steps, queries = (2, 4) if scale.tiny else (100, 256)
    _forget_peak(scale)
    began = time.perf_counter()
    memory = lcc.compile(
        model, tokenizer_of(model), text, ratio=RATIO, steps=steps, general_queries=queries, self_study_questions=0,
        max_response_tokens=4 if scale.tiny else 64, patience=0, certify=False, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    return _peak(scale) | {
        "seconds": seconds, "steps": steps, "seconds_a_step": seconds / steps, "buffer_tokens": len(memory.kv)
    }  # fmt: skip


def _model(scale: Scale, shape: str) -> PreTrainedModel:
    return random_model(shape, torch.bfloat16, scale.device, **(SMALL if scale.tiny else {}))


def _forget_peak(scale: Scale) -> None:
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(scale: Scale) -> Row:
    """Bytes that were held at the worst, the model's among them."""
    return {"peak_bytes": torch.cuda.max_memory_allocated()} if scale.device == "cuda" else {}
