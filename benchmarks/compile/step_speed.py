"""One optimisation step of compile: the paper's loop, two passes, and one packed pass; the same gradient, side by side.

    python -m benchmarks.compile.step_speed --context 1024 --ratio 16 --batch 64 --json

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from transformers import PreTrainedModel

import lcc
from benchmarks.common.data import synthetic_data
from benchmarks.common.environment import describe
from benchmarks.common.models import SHAPES, random_model, tokenizer_of
from benchmarks.common.timing import synchronized
from benchmarks.compile.float64 import exact
from lcc.compilers.lora import LoraCompiler, LoraMemory
from lcc.data.samples import Sample
from lcc.embedded_model import load_embedded
from lcc.modeling.kv import decoder
from lcc.modeling.prefill import prefill
from lcc.pipeline.settings import CompileSettings, make_settings
from lcc.synthetic.people import document
from lcc.text.context import Context, build_context
from lcc.training.loss import divergence, step_loss, token_weights
from lcc.training.student import reference_hidden

Engine = Callable[["Job"], list[torch.Tensor]]
Times = dict[str, list[float]]

AGREEMENT = 1e-9
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16


@dataclass(frozen=True)
class Job:
    """A step's work: the memory, its samples (the reconstruction sample first) and how many copies of it count."""

    memory: LoraMemory
    samples: list[Sample]
    copies: int
    settings: CompileSettings

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.memory.buffer, *self.memory.lora]


def per_sample(job: Job) -> list[torch.Tensor]:
    """The paper's loop: a forward and a backward for every sample, copies included."""
    samples = [job.samples[0]] * job.copies + job.samples[1:]
    weights = token_weights(samples, job.settings.training).to(job.memory.model.device)
    total = [torch.zeros_like(parameter) for parameter in job.parameters]
    sizes = [len(sample.response_ids) for sample in samples]
    for sample, weight in zip(samples, weights.split(sizes), strict=True):
        hidden = reference_hidden(job.memory, [sample], job.settings.training.keep_prefix)
        loss = divergence(job.memory.model, hidden, [sample], weight, "kl", job.settings.execution)
        total = [summed + gradient for summed, gradient in zip(total, _gradients(loss, job), strict=True)]
    return total


def two_pass(job: Job) -> list[torch.Tensor]:
    return _step(job, engine="reference")


def packed(job: Job) -> list[torch.Tensor]:
    return _step(job, engine="packed")


def packed_compiled(job: Job) -> list[torch.Tensor]:
    return _step(job, engine="packed", torch_compile=True)


def _step(job: Job, **changes: object) -> list[torch.Tensor]:
    settings = job.settings.replace(**changes)
    return _gradients(step_loss(job.memory, job.samples, settings.training, settings.execution), job)


def _gradients(loss: torch.Tensor, job: Job) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, job.parameters, materialize_grads=True))


@contextmanager
def prepare(model: PreTrainedModel, arguments: argparse.Namespace) -> Iterator[Job]:
    """A step's job; LoRA and buffers are random, so that every gradient is there."""
    torch.manual_seed(arguments.seed)
    settings = make_settings(
        general_queries=arguments.batch // 2, self_study_questions=0, held_out=0.0, precision="float32",
        max_response_tokens=arguments.response, seed=arguments.seed,
    )  # fmt: skip
    context = _context(model, arguments)
    with LoraCompiler().trainable(model, context, settings.compiler, settings.seed) as memory:
        with torch.no_grad():
            for parameter in (memory.buffer, *memory.lora):
                parameter.add_(torch.randn_like(parameter) * 0.02)
            text_kv = prefill(model, context.context_ids, memory.prefix)
            data = synthetic_data(model, context, text_kv, settings, lcc.load_queries())
        yield Job(memory, [*data.reconstruction, *data.train], arguments.batch // 2, settings)


def _context(model: PreTrainedModel, arguments: argparse.Namespace) -> Context:
    """Documents of the embedded model's world, one behind the other, cut at ``arguments.context`` tokens."""
    tokenizer = tokenizer_of(model)
    rng, text = random.Random(arguments.seed), ""
    while len(tokenizer(text).input_ids) < arguments.context:
        text += " " + document(rng, people=5, attributes=7).text
    short = build_context(model, tokenizer, text[:400], 1)
    ids = tuple(tokenizer(text).input_ids[: arguments.context])
    return replace(short, context_ids=ids, buffer=-(-len(ids) // arguments.ratio))


def relative_error(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """Norm of the difference over the norm, the largest over parameters that have a gradient."""
    errors = [
        ((gradient - expected).norm() / expected.norm()).item()
        for gradient, expected in zip(got, wanted, strict=True)
        if expected.norm() > 0
    ]
    return max(errors)


def gradient_error(job: Job) -> float:
    """Largest relative difference of an engine's gradient from the per-sample loop's.

    Raises:
        SystemExit: they differ by more than rounding.
    """
    wanted = per_sample(job)
    error = max(relative_error(run(job), wanted) for run in (two_pass, packed))
    if not error <= AGREEMENT:
        raise SystemExit(f"gradients differ by {error:.1e}: nothing is timed")
    return error


def seconds(job: Job, engines: Sequence[Engine], repetitions: int) -> tuple[Times, Times]:
    """Wall and processor times of each engine, taken in turns; all but the loop are called once before.

    On a shared machine the second says more: it leaves out the time that other jobs had.
    """
    device = job.memory.model.device.type
    calls = {run.__name__: synchronized(lambda run=run: run(job), device) for run in engines}
    for name, call in calls.items():
        if name != "per_sample":
            call()
    wall: Times = {name: [] for name in calls}
    busy: Times = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            began, worked = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - began)
            busy[name].append(time.process_time() - worked)
    return wall, busy


def flops(job: Job) -> dict[str, float]:
    """Floating-point operations of a step, counted from shapes.

    A row costs 2 a weight forward and as much backward, since frozen weights get no gradient; a visible pair of rows
    2 products forward and 5 backward; a supervised row 3 products with lm_head.
    """
    model, context = job.memory.model, job.memory.context
    config, layers = model.config, model.config.num_hidden_layers
    attention, weights = decoder(model).layers[0].self_attn, 0
    weights = sum(m.weight.numel() for m in decoder(model).layers[0].modules() if type(m) is torch.nn.Linear)
    row, pair = 4 * weights, 14 * config.num_attention_heads * attention.head_dim
    supervised = 6 * config.vocab_size * config.hidden_size
    prefix = len(job.memory.prefix)
    encoded, seen = (
        len(context.context_ids) + context.buffer,
        context.buffer + prefix * job.settings.training.keep_prefix,
    )

    def read(rows: int, before: int) -> float:
        """A layer's work on causal rows that also see all rows before."""
        return row * rows + pair * (rows * (rows + 1) / 2 + rows * before)

    encode = read(encoded, prefix)
    answers = [
        layers * read(len(sample.input_ids), seen) + supervised * len(sample.response_ids) for sample in job.samples
    ]
    copies = [answers[0]] * job.copies + answers[1:]
    return {
        "per_sample": sum(copies) + len(copies) * layers * encode,
        "two_pass": sum(answers) + layers * encode,
        "packed": sum(answers) + (layers - 1) * encode + read(context.buffer, 0),
    }


def measure(arguments: argparse.Namespace) -> dict:
    """One row of results."""
    with prepare(exact(load(arguments, torch.float64)), arguments) as job:
        error = gradient_error(job)
    engines = [per_sample, two_pass, packed] + [packed_compiled] * arguments.torch_compile
    model = load(arguments, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    with prepare(model, arguments) as job:
        (times, busy), work = seconds(job, engines, arguments.repetitions), flops(job)
        lengths = [len(sample.input_ids) for sample in job.samples]
    medians = {name: median(values) for name, values in times.items()}
    machine = describe()
    peak = next((value for name, value in PEAK_FLOPS.items() if name in machine["device"]), None)
    return {
        "model": arguments.model,
        "context": arguments.context,
        "ratio": arguments.ratio,
        "batch": arguments.batch,
        "seed": arguments.seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "sample_tokens": lengths,
        "speedup_over_per_sample": round(medians["per_sample"] / medians["packed"], 2),
        "speedup_over_two_pass": round(medians["two_pass"] / medians["packed"], 3),
        "gradient_relative_error": error,
        "median_seconds": {name: round(value, 4) for name, value in medians.items()},
        "seconds": {name: [round(value, 4) for value in values] for name, values in times.items()},
        "median_processor_seconds": {name: round(median(values), 4) for name, values in busy.items()},
        "gflop": {name: round(value / 1e9, 2) for name, value in work.items()},
        "mfu": round(work["packed"] / medians["packed"] / peak, 3) if peak else None,
        **machine,
    }


def load(arguments: argparse.Namespace, dtype: torch.dtype) -> PreTrainedModel:
    """The embedded model, or random weights in the shape of a real one, on the GPU if there is one.

    In float64 the latter is two layers of its shape: gradients are compared, not timed, and the whole would not fit.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.model == "embedded":
        return load_embedded(dtype)[0].to(device)
    if device == "cpu":
        raise SystemExit(f"{arguments.model} needs a GPU")
    return random_model(arguments.model, dtype, device, **({"num_hidden_layers": 2} if dtype == torch.float64 else {}))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["embedded", *SHAPES], default="embedded")
    parser.add_argument("--context", type=int, default=1024, help="tokens of text")
    parser.add_argument("--ratio", type=int, default=16, help="tokens of text a buffer token")
    parser.add_argument("--batch", type=int, default=64, help="samples a step, half of them reconstruction")
    parser.add_argument("--response", type=int, default=64, help="longest response to a query")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--torch-compile", action="store_true", help="time the packed step under torch.compile too")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    return parser.parse_args(words)


def main() -> None:
    arguments = parse()
    result = measure(arguments)
    text = json.dumps(result, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    if arguments.json:
        print(text)
        return
    for name, value in result["median_seconds"].items():
        print(f"{name:16} {value:8.3f} s")
    print(
        f"packed: {result['speedup_over_per_sample']}x the per-sample loop, {result['speedup_over_two_pass']}x two "
        f"passes; gradients agree to {result['gradient_relative_error']:.1e}"
    )


if __name__ == "__main__":
    main()
