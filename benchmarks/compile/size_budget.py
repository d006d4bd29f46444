"""What keeps most in so many bytes: a small ratio in few bits, or a large one in many.

    python -m benchmarks.compile.size_budget --work DIR --out benchmarks/results/compile/size-budget.json

A text is compiled at several ratios, recipe ``fast``; the float memories stay in DIR. Each is stored in every dtype and
measured beside the full text: an exam of which compile knows nothing, and ``kl`` in nats a token over the full text's
answers to it. A row is a document, a ratio and a dtype; ``kv_bytes`` are those of K, V and scales. A second call
measures what is missing. ``table`` averages the documents: each row is a number of bytes a token of text.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.inference.reader import Reader, changed_share
from lcc.memory.codes import FORMATS
from lcc.memory.quantization import quantize_payload
from lcc.synthetic.exam import score
from lcc.synthetic.people import Document, document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat

ATTRIBUTES, ANSWER_TOKENS = 7, 16
DTYPES = ("float32", "bfloat16", *FORMATS)


def text_of(people: int, seed: int) -> Document:
    """About 350 tokens of five people, 620 of nine."""
    return document(random.Random(DEMO + seed), people, ATTRIBUTES)


def compiled(people: int, seed: int, ratio: float, folder: Path) -> lcc.Memory:
    """The float memory, from its file or compiled now."""
    path = folder / f"people{people}-seed{seed}-ratio{ratio:g}.lcc.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text, data = text_of(people, seed).text, folder / "data"
        lcc.compile(*load(), text, recipe="fast", ratio=ratio, seed=seed, certify=False, surrogates=data).save(path)
    return lcc.Memory.load(path)


def stored(memory: lcc.Memory, dtype: str) -> lcc.Memory:
    """A float32 memory in ``dtype``."""
    if dtype in FORMATS:
        return replace(memory, payload=quantize_payload(memory.kv_payload, dtype))
    return memory.to("cpu", getattr(torch, dtype))


def measure(people: int, seed: int, ratio: float, folder: Path) -> Iterator[Row]:
    """A row for each dtype."""
    model, tokenizer = load()
    doc, memory = text_of(people, seed), compiled(people, seed, ratio, folder)
    memory.verify(model, tokenizer)
    questions, chat = doc.questions(), ChatFormat.of(tokenizer)
    texts = [question.text for question in questions]
    full_text = Reader.of_text(model, chat, doc.text).say(texts, ANSWER_TOKENS)
    float_answers = Reader.of_memory(model, chat, memory).say(texts, ANSWER_TOKENS)
    for dtype in DTYPES:
        small = stored(memory, dtype)
        reader = Reader.of_memory(model, chat, small)
        answers = reader.say(texts, ANSWER_TOKENS)
        said = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers.responses]
        yield {
            "people": people, "seed": seed, "ratio": ratio, "dtype": dtype, "source_tokens": memory.source_tokens,
            "buffer_tokens": memory.buffer_tokens, "kv_bytes": small.kv_bytes, "questions": len(texts),
            "score": score(said, questions), "kl": full_text.kl(reader), "kl_from_float": float_answers.kl(reader),
            "changed": changed_share(float_answers.responses, answers.responses), **describe(),
        }  # fmt: skip


def table(rows: list[Row]) -> str:
    """Markdown: each pair of ratio and dtype, the fewest bytes first, the mean over documents."""
    columns = ("score", "kl", "kl_from_float", "changed")
    lines = ["| dtype @ ratio | bytes a text token | documents | " + " | ".join(columns) + " |", "|---" * 7 + "|"]
    pairs: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["ratio"], row["dtype"]), []).append(row)

    def size(group: list[Row]) -> float:
        return mean(row["kv_bytes"] / row["source_tokens"] for row in group)

    for (ratio, dtype), group in sorted(pairs.items(), key=lambda pair: size(pair[1])):
        figures = " | ".join(f"{mean(map(itemgetter(column), group)):.4g}" for column in columns)
        lines.append(f"| {dtype} @ {ratio:g} | {size(group):.0f} | {len(group)} | {figures} |")
    return "\n".join(lines)


def sweep(
    description: str | None,
    measure: Callable[[int, int, float, Path], Iterable[Row]],
    table: Callable[[list[Row]], str],
    seeds: Sequence[int],
    ratios: Sequence[float],
) -> None:
    """The command line of a benchmark that measures memories of texts, and goes on where it stopped.

    Args:
        measure: the rows of one memory, from its text's people, its seed, its ratio, and a folder of memories.
        table: what is printed of all rows.
        seeds, ratios: unless the command line says others.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[5, 9])
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--ratios", type=float, nargs="+", default=ratios)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = Sweep(arguments.out, itemgetter("people", "seed", "ratio"), order=lambda key: key)
    for key in rows.missing(product(arguments.people, arguments.seeds, arguments.ratios)):
        rows.replace(key, measure(*key, arguments.work))
    print(table(rows.rows))


if __name__ == "__main__":
    sweep(__doc__, measure, table, seeds=[0, 1, 2], ratios=[64, 32, 16, 8, 4, 2])
