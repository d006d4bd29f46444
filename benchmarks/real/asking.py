"""How long a model takes to ask and answer questions about a story, and how near that is to the machine's limit.

    python -m benchmarks.real.asking --model DIR --questions 1000 --out benchmarks/results/real/asking.json

A step writes one token in each of 256 rows. Its floor is the time of its multiplications, at the rate at which this
machine multiplies matrices of the model's own shape in the same run: every weight once, the head included, and the
attention to the text.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

from benchmarks.common.environment import describe
from benchmarks.common.results_file import load_rows, write_rows
from lcc.cli.loading import load_model
from lcc.evaluation.stories import load_story
from lcc.modeling.decoding import CPU_ROWS, Prompt, decode
from lcc.modeling.kv import kv_shape
from lcc.modeling.model_copy import share_weights
from lcc.modeling.prefill import prefill
from lcc.pipeline.distillation import distillation_data, teacher_model
from lcc.pipeline.settings import make_settings
from lcc.text.context import Context, build_context
from lcc.text.queries import load_queries
from lcc.utils.progress import Reporter

Row = dict[str, Any]
TOKENS, REPEATS = 12, 5


def asking(model: Any, tokenizer: Any, context: Context, settings: Any) -> Row:
    """All questions asked and answered: seconds, and what came of it."""
    began = time.monotonic()
    with Reporter() as reporter:
        data = distillation_data(model, context, settings, load_queries(None, tokenizer), None, reporter)
    samples = data.train + data.held_out
    tokens = sum(len(sample.response_ids) for sample in samples)
    return {"seconds": round(time.monotonic() - began, 1), "response_tokens": tokens, "asking": data.asking}


@torch.no_grad()
def step(model: Any, context: Context, settings: Any) -> Row:
    """Seconds of a step of so many rows behind the text, and the floor."""
    teacher = teacher_model(model, settings)
    text_kv = prefill(teacher, [*context.prefix_ids, *context.context_ids])
    prompts = [Prompt((context.context_ids[number],), (), str(number)) for number in range(CPU_ROWS)]
    taken = []
    for tokens in (1, 1 + TOKENS):
        began = time.perf_counter()
        list(decode(teacher, text_kv, prompts, lambda _: False, tokens))
        taken.append(time.perf_counter() - began)
    seconds = (taken[1] - taken[0]) / TOKENS
    config = model.config
    rate = multiplied(CPU_ROWS, config.hidden_size, config.intermediate_size, teacher.dtype)
    *_, width = kv_shape(config)
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2)
    attention = 2 * len(text_kv) * config.num_hidden_layers * config.num_attention_heads * width
    floor = 2 * CPU_ROWS * (weights + attention) / rate
    return {
        "step_seconds": seconds, "floor_seconds": floor, "share_of_floor": floor / seconds,
        "gigaflops": rate / 1e9, "dtype": str(teacher.dtype),
    }  # fmt: skip


def multiplied(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """Floating point operations a second of a product of these shapes."""
    states, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        for _ in range(20):
            linear(states, weight)
        seconds.append((time.perf_counter() - began) / 20)
    return 2 * rows * inputs * outputs / median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or GGUF file")
    parser.add_argument("--story", default="lighthouse")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    settings = make_settings(self_study_questions=arguments.questions, general_queries=0, precision=arguments.precision)
    context = build_context(model, tokenizer, load_story(arguments.story).text, 8)
    model = share_weights(model)
    row: Row = {"story": arguments.story, "tokens": len(context.context_ids), "questions": arguments.questions}
    row |= step(model, context, settings) | asking(model, tokenizer, context, settings) | describe()
    for name, value in row.items():
        print(f"{name}: {value}")
    if arguments.out:
        write_rows(arguments.out, [*load_rows(arguments.out), row])


if __name__ == "__main__":
    main()
