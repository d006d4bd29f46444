"""One optimisation step of compile: the paper's loop, two passes, and one packed pass; the same gradient, side by side.

    python -m benchmarks.compile_step --context 1024 --ratio 16 --batch 64 --json

Half of the batch is the reconstruction sample, half are general queries. *per_sample* encodes the text for each sample
and takes each one's own forward and backward, the identical reconstruction samples too; it is given cached teacher
states and two plain causal passes, which is kinder than the paper's dense mask. *two_pass* encodes once and batches the
samples over a cache (``engine="reference"``). *packed* is ``engine="packed"``. Gradients must agree in float64 before
float32 (bfloat16 on a GPU) is timed; engines take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import lcc
from benchmarks.environment import describe
from benchmarks.timing import synchronized
from lcc.context import Context, build_context
from lcc.encode import Compiler, lora_model, read_text
from lcc.models import EMBEDDED
from lcc.models.fiction import document
from lcc.objective import divergence, row_weights, step_loss
from lcc.settings import CompileSettings
from lcc.student import reference_hidden
from lcc.surrogate import Sample, build_surrogate

AGREEMENT = 1e-9
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16


@dataclass(frozen=True)
class Job:
    """A step's work: the compiler, its samples (the reconstruction sample first) and how many copies of it count."""

    compiler: Compiler
    samples: list[Sample]
    copies: int
    settings: CompileSettings

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.compiler.buffer, *self.compiler.lora]


def per_sample(job: Job) -> list[torch.Tensor]:
    """The paper's loop: a forward and a backward for every sample, copies included."""
    samples = [job.samples[0]] * job.copies + job.samples[1:]
    weights = row_weights(samples, job.settings).to(job.compiler.model.device)
    total = [torch.zeros_like(parameter) for parameter in job.parameters]
    sizes = [len(sample.response_ids) for sample in samples]
    for sample, weight in zip(samples, weights.split(sizes), strict=True):
        hidden = reference_hidden(job.compiler, [sample], job.settings)
        loss = divergence(job.compiler.model, hidden, [sample], weight, "kl")
        for mine, gradient in zip(total, _gradients(loss, job), strict=True):
            mine += gradient
    return total


def two_pass(job: Job) -> list[torch.Tensor]:
    return _gradients(step_loss(job.compiler, job.samples, replace(job.settings, engine="reference")), job)


def packed(job: Job) -> list[torch.Tensor]:
    return _gradients(step_loss(job.compiler, job.samples, replace(job.settings, engine="packed")), job)


ENGINES: dict[str, Callable[[Job], list[torch.Tensor]]] = {
    "per_sample": per_sample,
    "two_pass": two_pass,
    "packed": packed,
}


def _gradients(loss: torch.Tensor, job: Job) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, job.parameters, materialize_grads=True))


@contextmanager
def prepare(model: PreTrainedModel, arguments: argparse.Namespace, dtype: torch.dtype) -> Iterator[Job]:
    """The step's job on a copy of the seed's data; LoRA and buffers random, so that every gradient is there."""
    torch.manual_seed(arguments.seed)
    model = model.to(dtype)
    settings = CompileSettings(
        general_queries=arguments.batch // 2, self_study_questions=0, held_out=0.0, precision="float32",
        max_response_tokens=arguments.response, seed=arguments.seed, torch_compile=arguments.torch_compile,
    )  # fmt: skip
    context = _context(model, arguments)
    with lora_model(model, settings) as layers:
        compiler = Compiler(model, context, layers)
        with torch.no_grad():
            for parameter in (compiler.buffer, *compiler.lora):
                parameter.add_(torch.randn_like(parameter) * 0.02)
            text_kv = read_text(model, context.context_ids, compiler.prefix)
            surrogate = build_surrogate(model, context, text_kv, settings, lcc.load_queries(), lambda *_: None)
        yield Job(compiler, [surrogate.reconstruction, *surrogate.train], arguments.batch // 2, settings)


def _context(model: PreTrainedModel, arguments: argparse.Namespace) -> Context:
    """Documents of the embedded model's world, one behind the other, cut at ``arguments.context`` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    rng, text = random.Random(arguments.seed), ""
    while len(tokenizer(text).input_ids) < arguments.context:
        text += " " + document(rng, people=5, attributes=7).text
    short = build_context(model, tokenizer, text[:400], 1, 1)
    ids = tuple(tokenizer(text).input_ids[: arguments.context])
    return replace(short, context_ids=ids, buffer=-(-len(ids) // arguments.ratio))


def relative_error(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, the largest over parameters that have a gradient."""
    errors = [
        ((mine - theirs).norm() / theirs.norm()).item()
        for mine, theirs in zip(got, wanted, strict=True)
        if theirs.norm() > 0
    ]
    return max(errors)


def gradient_error(model: PreTrainedModel, arguments: argparse.Namespace) -> float:
    """Largest relative difference of any engine's gradient from the per-sample loop's, in float64."""
    with prepare(model, arguments, torch.float64) as job:
        wanted = per_sample(job)
        error = max(relative_error(run(job), wanted) for run in (two_pass, packed))
    assert error <= AGREEMENT, f"gradients differ by {error:.1e}: nothing is timed"
    return error


def seconds(job: Job, repetitions: int) -> dict[str, list[float]]:
    """Times of each engine, taken in turns after one warm-up of each."""
    device = job.compiler.model.device.type
    calls = {name: synchronized(lambda run=run: run(job), device) for name, run in ENGINES.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repetition:
                times[name].append(time.perf_counter() - began)
    return times
