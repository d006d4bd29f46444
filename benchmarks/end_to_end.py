"""Questions answered from the full text and from a memory of it, end to end, in one run.

    python -m benchmarks.end_to_end [--model embedded|llama-8b-shape] [--questions 32] [--json] [--out FILE]

Four readers answer the same questions, one batch of them, with a fixed number of new tokens:

- ``text, copies``: transformers alone; the text is read once and its K and V are repeated for every question;
- ``text, shared``: the text is read once and held once (``lcc_shared_prefix``);
- ``memory, copies``: transformers alone, on the K and V that ``lcc.attach`` makes, repeated for every question;
- ``memory, shared``: ``lcc.ask``.

A time is from a cold start, the text as a string or the memory on the device, to the answers as strings: reading,
fingerprints and decoding included. Speed does not depend on what a memory holds, so this one is random. The readers
take turns; figures are medians over the rounds. KV bytes are those of the storages that the caches hold in the end.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig
from transformers.utils import logging

import lcc
from benchmarks.environment import describe
from benchmarks.timing import peak_bytes, synchronized
from lcc.chat import ChatFormat
from lcc.generate import answer_queries, generate_after, prompt
from lcc.kv import KV, SharedCache
from lcc.models import EMBEDDED
from lcc.models.exam import read_chat
from lcc.models.fiction import document
from lcc.models.tokenizer import build_tokenizer

CONTEXT = {"embedded": 1000, "llama-8b-shape": 8192}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Heading: field, factor and digits.
COLUMNS = {
    "first token (ms)": ("first_token_seconds", 1e3, 1),
    "all answers (ms)": ("seconds", 1e3, 1),
    "tokens/s": ("tokens_per_second", 1, 0),
    "KV (MB)": ("kv_bytes", 1e-6, 2),
    "peak (MB)": ("peak_bytes", 1e-6, 1),
}


@dataclass(frozen=True)
class Reader:
    """``answer(new tokens)`` is what is timed; ``cache(new tokens)`` does the same and returns the filled cache."""

    answer: Callable[[int], object]
    cache: Callable[[int], Any]


class Task:
    """A model, a text and questions about it, and a memory of the text's size over ``ratio``."""

    def __init__(self, model: Any, tokenizer: Any, context: int, ratio: float, questions: int):
        self.model, self.tokenizer, self.chat = model, tokenizer, ChatFormat.of(tokenizer)
        doc = document(random.Random(0), 12, 8)
        ids = self.chat.ids(doc.text)
        self.text = tokenizer.decode((ids * ceil(context / len(ids)))[:context])
        self.questions = [question.text for question in doc.questions()][:questions]
        self.queries = [self.chat.query_ids(question) for question in self.questions]
        self.memory = random_memory(model, tokenizer, self.chat, len(self.chat.ids(self.text)), ratio)

    def readers(self) -> dict[str, Reader]:
        return {
            "text, copies": self._copying(self._read_text),
            "text, shared": self._sharing(self._read_text),
            "memory, copies": self._copying(self._read_memory),
            "memory, shared": Reader(self._ask, self._sharing(self._read_memory).cache),
        }

    def _read_text(self) -> KV:
        return read_chat(self.model, self.chat, self.text)

    def _read_memory(self) -> KV:
        return lcc.attach(self.model, self.memory).read()

    def _ask(self, new: int) -> list[str]:
        return lcc.ask(
            self.model, self.tokenizer, self.memory, self.questions, batch=len(self.questions), **fixed_length(new)
        )

    def _sharing(self, read: Callable[[], KV]) -> Reader:
        def answer(new: int) -> list[str]:
            return answer_queries(self.model, self.chat, read(), self.queries, len(self.queries), **fixed_length(new))

        def cache(new: int) -> Any:
            held = read().cache()
            generate_after(self.model, held, self.queries, self.chat.end, **fixed_length(new))
            return held

        return Reader(answer, cache)

    def _copying(self, read: Callable[[], KV]) -> Reader:
        def generate(new: int) -> tuple[torch.Tensor, DynamicCache]:
            kv, cache = read(), DynamicCache(config=self.model.config)
            for layer, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
                cache.update(keys[None], values[None], layer)
            cache.batch_repeat_interleave(len(self.queries))
            inputs = prompt(len(kv), self.queries, self.chat.end, self.model.device)
            options = {"do_sample": False, "pad_token_id": self.chat.end, **fixed_length(new)}
            return self.model.generate(**inputs, past_key_values=cache, **options)[:, -new:], cache

        return Reader(
            lambda new: self.tokenizer.batch_decode(generate(new)[0], skip_special_tokens=True),
            lambda new: generate(new)[1],
        )


def fixed_length(new: int) -> dict[str, int]:
    return {"max_new_tokens": new, "min_new_tokens": new}


def random_memory(model: Any, tokenizer: Any, chat: ChatFormat, tokens: int, ratio: float) -> lcc.Memory:
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (config.num_hidden_layers, config.num_key_value_heads, ceil(tokens / ratio), width)
    keys, values = torch.randn(2, *shape, dtype=model.dtype, device=model.device)
    return lcc.Memory(
        kv=KV(keys, values),
        prefix_ids=tuple(chat.prefix_ids),
        ratio=ratio,
        source_tokens=tokens,
        source_sha256="",
        rope=dict(config.rope_parameters),
        fingerprint=lcc.fingerprint(model, tokenizer),
        settings={},
    )


def storage_bytes(cache: Any) -> int:
    """Bytes of the storages that a cache of transformers, or a shared one, keeps alive."""
    if isinstance(cache, SharedCache):
        return cache.nbytes
    storages = (tensor.untyped_storage() for layer in cache.layers for tensor in (layer.keys, layer.values))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


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
    return [row(name, reader, times, new, task, device) for name, reader in readers.items()]


def row(name: str, reader: Reader, times: dict, new: int, task: Task, device: str) -> dict[str, Any]:
    first, whole = (statistics.median(times[name, length][1:]) for length in (1, new))
    tokens = len(task.questions) * new
    return {
        "reader": name,
        "first_token_seconds": round(first, 5),
        "seconds": round(whole, 5),
        "tokens_per_second": round(tokens / whole, 1),
        "kv_bytes": storage_bytes(reader.cache(new)),
        "peak_bytes": peak_bytes(lambda: reader.answer(new), device),
    }


def load(name: str, layers: int | None, hidden: int | None) -> tuple[Any, Any, str]:
    """Model, tokenizer, and the name for the rows.

    Raises:
        SystemExit: the full-sized random model without a GPU.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "embedded":
        return AutoModelForCausalLM.from_pretrained(EMBEDDED).to(device), AutoTokenizer.from_pretrained(EMBEDDED), name
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
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return model, build_tokenizer(), f"{name}, {layers} layers, hidden {hidden}" if scaled else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONTEXT, default="embedded")
    parser.add_argument("--layers", type=int, help="of the random model")
    parser.add_argument("--hidden", type=int, help="width of the random model")
    parser.add_argument("--context", type=int, help="tokens of text (default: 1000, or 8192 of the random model)")
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model, tokenizer, name = load(arguments.model, arguments.layers, arguments.hidden)
    context = arguments.context or CONTEXT[arguments.model]
    task = Task(model, tokenizer, context, arguments.ratio, arguments.questions)
    shape = {
        "model": name,
        "context_tokens": task.memory.source_tokens,
        "buffer_tokens": task.memory.buffer_tokens,
        "questions": len(task.questions),
        "new_tokens": arguments.new_tokens,
        "rounds": arguments.rounds,
    }
    rows = [shape | found | describe() for found in measure(task, arguments.new_tokens, arguments.rounds)]
    report = {"rows": rows, "memory_over": ratios(rows)}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if arguments.json else table(report))


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times less ``lcc.ask`` needs than each other reader."""
    *others, memory = rows
    needs = ("first_token_seconds", "seconds", "kv_bytes", "peak_bytes")
    return {other["reader"]: {need: round(other[need] / memory[need], 2) for need in needs} for other in others}


def table(report: dict[str, Any]) -> str:
    lines = ["| reader | " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|---|"]
    for found in report["rows"]:
        cells = (f"{found[key] * factor:.{digits}f}" for key, factor, digits in COLUMNS.values())
        lines.append(f"| {found['reader']} | " + " | ".join(cells) + " |")
    lines += [f"memory, shared needs {found} of {other}" for other, found in report["memory_over"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
