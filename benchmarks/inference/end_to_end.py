"""Questions answered from the full text and from a memory of it, end to end, in one run.

    python -m benchmarks.inference.end_to_end [--model embedded|llama-8b-shape] [--questions 32] [--json]
        [--out FILE.json]

Four readers answer the same questions, one batch of them, with a fixed number of new tokens:

- ``text, copies``: transformers alone; the text is read once and its K and V are repeated for every question;
- ``text, shared``: the text is read once and held once (``lcc_shared_prefix``);
- ``memory, copies``: transformers alone, on the K and V that ``lcc.attach`` makes, repeated for every question;
- ``memory, shared``: ``lcc.ask``.

A time is from a cold start, the text as a string or the memory on the device, to the answers as strings: reading,
fingerprints and decoding included. Speed does not depend on what a memory holds, so this one is random. The readers
take turns; figures are medians over the rounds. KV bytes are those of the storages that the caches hold in the end,
peak bytes those of all tensors beyond what was held before. ``times_memory`` says how many times what ``lcc.ask``
needs a reader needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from benchmarks.common.environment import describe
from benchmarks.common.results_file import write_rows
from benchmarks.common.timing import peak_bytes, synchronized
from benchmarks.inference.answering_paths import Reader, Task, storage_bytes
from lcc.embedded_model import load_embedded
from lcc.embedded_model.tokenizer import build_tokenizer

CONTEXT = {"embedded": 1000, "llama-8b-shape": 8192}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
NEEDS = ("first_token_seconds", "seconds", "kv_bytes", "peak_bytes")
# Heading: field, factor and digits.
COLUMNS = {
    "questions": ("questions", 1, 0),
    "first token (ms)": ("first_token_seconds", 1e3, 1),
    "all answers (ms)": ("seconds", 1e3, 1),
    "tokens/s": ("tokens_per_second", 1, 0),
    "KV (MB)": ("kv_bytes", 1e-6, 2),
    "peak (MB)": ("peak_bytes", 1e-6, 1),
}


def measure(task: Task, new: int, rounds: int) -> list[dict[str, Any]]:
    """One row a reader; readers take turns, after a round that does not count."""
    device, readers = task.model.device.type, task.readers()
    times: dict[tuple[str, int], list[float]] = {(name, length): [] for name in readers for length in (1, new)}
    for _ in range(rounds + 1):
        for (name, length), seconds in times.items():
            run = synchronized(partial(readers[name].answer, length), device)
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    medians = {key: statistics.median(seconds[1:]) for key, seconds in times.items()}
    rows = [
        {"reader": name, **figures(reader, medians[name, 1], medians[name, new], new, task)}
        for name, reader in readers.items()
    ]
    return [row | {"times_memory": {need: round(row[need] / rows[-1][need], 2) for need in NEEDS}} for row in rows]


def figures(reader: Reader, first: float, whole: float, new: int, task: Task) -> dict[str, Any]:
    return {
        "context_tokens": task.memory.source_tokens,
        "buffer_tokens": task.memory.buffer_tokens,
        "questions": len(task.questions),
        "new_tokens": new,
        "first_token_seconds": round(first, 5),
        "seconds": round(whole, 5),
        "tokens_per_second": round(len(task.questions) * new / whole, 1),
        "kv_bytes": storage_bytes(reader.cache(new)),
        "peak_bytes": peak_bytes(partial(reader.answer, new), task.model.device.type),
    }


def load(name: str, layers: int | None, hidden: int | None) -> tuple[Any, Any, str]:
    """Model, tokenizer, and the name for the rows.

    Raises:
        SystemExit: the full-sized random model without a GPU, or a width that is not whole heads.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "embedded":
        model, tokenizer = load_embedded()
        return model.to(device), tokenizer, name
    scaled = layers is not None or hidden is not None
    if device == "cpu" and not scaled:
        raise SystemExit(f"{name} needs a GPU; --layers and --hidden scale it down for a CPU")
    layers, hidden = layers or 32, hidden or 4096
    if hidden % 512:
        raise SystemExit("--hidden must be a multiple of 512: heads of 128, four to a KV head")
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_parameters=LLAMA3_ROPE,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
    return model, build_tokenizer(), f"{name} ({layers} layers, hidden {hidden})" if scaled else name


def table(rows: list[dict[str, Any]]) -> str:
    titles = ["reader", *COLUMNS, "times lcc.ask"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [f"{row[key] * factor:.{digits}f}" for key, factor, digits in COLUMNS.values()]
        lines.append(" | ".join([f"| {row['reader']}", *cells, f"{row['times_memory']['seconds']:.2f} |"]))
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Save a PNG: seconds and KV bytes by the number of questions, a line a reader."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = zip(figure.subplots(1, 2), (("seconds", 1, "all answers, s"), ("kv_bytes", 1e-6, "KV, MB")), strict=True)
    for axes, (key, factor, label) in panels:
        for reader in dict.fromkeys(row["reader"] for row in rows):
            of_reader = [row for row in rows if row["reader"] == reader]
            axes.plot(
                [row["questions"] for row in of_reader], [row[key] * factor for row in of_reader], "o-", label=reader
            )
        axes.set(xlabel="questions at once", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(list(dict.fromkeys(row["questions"] for row in rows)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(which="both", alpha=0.3)
    axes.legend()
    first = rows[0]
    sizes = f"{first['context_tokens']} tokens of text or {first['buffer_tokens']} of memory"
    figure.suptitle(f"{first['model']} · {sizes} · {first['new_tokens']} new tokens · {first['device']}", fontsize=9)
    figure.savefig(path, dpi=120, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONTEXT, default="embedded")
    parser.add_argument("--layers", type=int, help="of the random model")
    parser.add_argument("--hidden", type=int, help="width of the random model")
    parser.add_argument("--context", type=int, help="tokens of text (default: 1000, or 8192 of the random model)")
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--questions", type=int, nargs="+", default=[32], help="how many at once")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the JSON here, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model, tokenizer, name = load(arguments.model, arguments.layers, arguments.hidden)
    context = arguments.context or CONTEXT[arguments.model]
    where = {"model": name, "rounds": arguments.rounds, **describe()}
    rows = [
        where | row
        for questions in arguments.questions
        for row in measure(
            Task(model, tokenizer, context, arguments.ratio, questions), arguments.new_tokens, arguments.rounds
        )
    ]
    if arguments.out:
        write_rows(arguments.out, rows)
    if arguments.plot:
        plot(rows, arguments.plot)
    print(json.dumps({"rows": rows}) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
