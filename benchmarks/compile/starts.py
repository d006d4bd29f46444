"""What a start is worth: compilers that go on from another one's memory, beside the same ones from nothing.

    python -m benchmarks.compile.starts --documents 0 1 2 3 --ratios 8 16 --out starts.json

Every memory of a document is asked all its questions. ``kl`` is from the full text's reader, over its own answers.
``seconds`` are those of the processor, without what the model asks itself: that is made once a document, for all.
What a chain goes on from is in its seconds. A second call measures what is missing.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.inference.reader import Reader
from lcc.inference.requests import Request
from lcc.modeling.prefill import prefill
from lcc.synthetic.exam import score
from lcc.synthetic.people import document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat

PEOPLE, ATTRIBUTES, ANSWER_TOKENS = 5, 4, 16
STEPS = {"recipe": "fast", "evaluate_every": 10}


@dataclass(frozen=True)
class Chain:
    """A compilation: what it goes on from, if anything, the compiler, and its options."""

    compiler: str
    options: dict[str, Any]
    start: str | None = None


def _trained(compiler: str, steps: int, start: str | None = None, **options: Any) -> Chain:
    return Chain(compiler, STEPS | {"steps": steps} | options, start)


# A memory that is near needs smaller steps than one that begins anew: a third of the rate.
CHAINS = {
    "gradmem": Chain("gradmem", {}),
    "attention_matching": Chain("attention_matching", {}),
    "attention_matching omp": Chain("attention_matching", {"matched_keys": "omp"}),
    "direct_kv 30": _trained("direct_kv", 30),
    "direct_kv 110": _trained("direct_kv", 110),
    "attention_matching > direct_kv 30": _trained("direct_kv", 30, "attention_matching", learning_rate=0.03),
    "lcc 30": _trained("lcc", 30),
    "lcc 110": _trained("lcc", 110),
    "attention_matching > lcc 30": _trained("lcc", 30, "attention_matching"),
}


class Exam:
    """A document's questions, and what the reader of its full text says to them."""

    def __init__(self, number: int):
        self.model, self.tokenizer = load()
        told = document(random.Random(DEMO + 1000 + number), PEOPLE, ATTRIBUTES)
        self.text, self.questions, self.chat = told.text, told.questions(), ChatFormat.of(self.tokenizer)
        self.full = Reader.of_text(self.model, self.chat, self.text)
        self.said = self.full.say([question.text for question in self.questions], ANSWER_TOKENS)

    def grade(self, reader: Reader) -> Row:
        """How near ``reader`` is to the full text's, and the share of questions that it answers exactly."""
        return {"kl": self.said.kl(reader), "score": self.score(reader)}

    def score(self, reader: Reader) -> float:
        """The share of questions that are answered exactly."""
        asked = [Request((question.text,), max_new_tokens=ANSWER_TOKENS) for question in self.questions]
        return score(reader.answer(asked), self.questions)

    def first_tokens(self, ratio: float) -> Reader:
        """A reader of as many first tokens of the text as a memory has."""
        ids = self.chat.ids(self.text)
        with torch.no_grad():
            kept = prefill(self.model, [*self.chat.prefix_ids, *ids[: math.ceil(len(ids) / ratio)]])
        return Reader(self.model, self.chat, kept)


def measure(number: int, ratio: float, folder: Path) -> list[Row]:
    """The rows of one document at one ratio."""
    exam = Exam(number)
    compiled = partial(
        lcc.compile,
        exam.model,
        exam.tokenizer,
        exam.text,
        ratio=ratio,
        certify=False,
        progress=False,
        surrogates=folder,
    )
    compiled(compiler="direct_kv", **STEPS | {"steps": 1})  # makes the data
    where = describe() | {"document": number, "ratio": ratio, "full_text": exam.score(exam.full)}
    rows = [where | {"chain": "first_tokens", "seconds": 0.0} | exam.grade(exam.first_tokens(ratio))]
    made: dict[str | None, tuple[lcc.Memory | None, float]] = {None: (None, 0.0)}
    for name, chain in CHAINS.items():
        start, seconds = made[chain.start]
        began = time.process_time()
        memory = compiled(compiler=chain.compiler, start=start, **chain.options)
        made[name] = memory, seconds + time.process_time() - began
        row = {"chain": name, "seconds": round(made[name][1], 2)} | exam.grade(
            Reader.of_memory(exam.model, exam.chat, memory)
        )
        print(
            f"{number} {ratio:g} {name}: {row['seconds']} s, KL {row['kl']:.3f}, score {row['score']:.1%}", flush=True
        )
        rows.append(where | row)
    return rows


def summary(rows: list[Row]) -> str:
    """A table of means over documents."""
    lines = ["| ratio | chain | documents | processor seconds | KL | score | full text |", "|---" * 7 + "|"]
    for ratio, chain in dict.fromkeys((row["ratio"], row["chain"]) for row in rows):
        found = [row for row in rows if (row["ratio"], row["chain"]) == (ratio, chain)]
        seconds, kl, right, full = (
            mean(row[name] for row in found) for name in ("seconds", "kl", "score", "full_text")
        )
        lines.append(f"| {ratio:g} | {chain} | {len(found)} | {seconds:.1f} | {kl:.3f} | {right:.1%} | {full:.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--ratios", type=float, nargs="+", default=[8, 16])
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "lcc-starts", help="a folder for it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, itemgetter("document", "ratio", "chain"))
    done = {(row["document"], row["ratio"]) for row in sweep.rows}
    for number, ratio in product(arguments.documents, arguments.ratios):
        if (number, ratio) not in done:
            for row in measure(number, ratio, arguments.data / str(number)):
                sweep.add(row)
    print(summary(sweep.rows), end="")


if __name__ == "__main__":
    main()
