"""A year in miniature: twelve monthly texts, taken in one after another, and what is left of each month in the end.

    python -m benchmarks.compile.year --work DIR --out benchmarks/results/compile/year.json

A month is a text about two people whom no other month knows. ``growing`` begins with a memory of month 1 at ratio 12,
and adds buffer tokens at that ratio; ``growing beside`` leaves the old ones as they are. ``constant`` begins with
month 1 at ratio 1 and keeps that size, so that all end with about as many buffer tokens. ``at once`` compiles all
twelve texts as one, at ratio 12. ``raw text`` reads them.
After each month a row says the share of each month's questions that is answered exactly. No question is one that the
model asked itself while it compiled. A second call goes on with what is missing. The plot stands beside the rows.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from lcc.evaluation.methods import last_questions
from lcc.inference.reader import Reader
from lcc.inference.requests import Request
from lcc.synthetic.exam import score
from lcc.synthetic.people import Document, document
from lcc.text.chat_format import ChatFormat

MONTHS, PEOPLE, ATTRIBUTES, ANSWER_TOKENS = 12, 2, 6, 16
RATIO = 12.0
GROWING, STILL, CONSTANT, ONCE, RAW = "growing", "growing beside", "constant", "at once", "raw text"


def months(seed: int) -> list[Document]:
    """The texts of a year, about people who are all distinct."""
    rng, texts, known = random.Random(f"year {seed}"), [], set[str]()
    while len(texts) < MONTHS:
        drawn = document(rng, PEOPLE, ATTRIBUTES)
        if not known & set(drawn.names):
            texts.append(drawn)
            known |= set(drawn.names)
    return texts


class Year:
    """The texts of a seed, and the ways of holding them.

    Args:
        work: a folder for memories, from which a second call goes on.
    """

    def __init__(self, seed: int, work: Path, steps: int, steps_at_once: int):
        self.seed, self.work, self.steps, self.steps_at_once = seed, work, steps, steps_at_once
        self.model, self.tokenizer = load()
        self.chat, self.texts = ChatFormat.of(self.tokenizer), months(seed)

    def rows(self, way: str, after: Sequence[int]) -> Iterator[Row]:
        """A row of ``way`` for each number of months in ``after``."""
        for number in after:
            began = time.process_time()
            memory = None if way == RAW else self.memory(way, number)
            seconds = time.process_time() - began
            yield self.row(memory, number) | {"seed": self.seed, "way": way, "seconds": round(seconds, 2)}

    def memory(self, way: str, number: int) -> lcc.Memory:
        """The memory of the first ``number`` months."""
        path = self.work / f"{self.seed}-{way.replace(' ', '-')}-{number}.lcc.safetensors"
        if not path.exists():
            self._make(way, number).save(path)
        return lcc.Memory.load(path)

    def _make(self, way: str, number: int) -> lcc.Memory:
        options: dict[str, Any] = {"recipe": "fast", "evaluate_every": 20, "certify": False, "progress": False}
        options |= {"steps": self.steps_at_once if way == ONCE else self.steps, "seed": self.seed}
        if way == ONCE or number == 1:
            ratio = 1.0 if way == CONSTANT else RATIO
            return lcc.compile(self.model, self.tokenizer, self.text(number), ratio=ratio, **options)
        before, text = self.memory(way, number - 1), self.texts[number - 1].text
        if way == STILL:
            options["past_learning_rate"] = 0.0
        return lcc.update(self.model, self.tokenizer, before, text, growing=way != CONSTANT, **options)

    def text(self, number: int) -> str:
        """The first ``number`` months as one text."""
        return " ".join(each.text for each in self.texts[:number])

    def row(self, memory: lcc.Memory | None, number: int) -> Row:
        """What is left of each month; ``memory`` is None for the texts themselves."""
        if memory is None:
            reader, asked = Reader.of_text(self.model, self.chat, self.text(number)), frozenset[str]()
        else:
            reader, asked = Reader.of_memory(self.model, self.chat, memory), last_questions(memory.questions)
        shares, counts = [], []
        for each in self.texts[:number]:
            questions = [question for question in each.questions() if question.text not in asked]
            requests = [Request((question.text,), max_new_tokens=ANSWER_TOKENS) for question in questions]
            shares.append(score(reader.answer(requests), questions))
            counts.append(len(questions))
        tokens = len(reader.visible) - len(self.chat.prefix_ids)
        return describe() | {"after": number, "tokens": tokens, "share": shares, "questions": counts}


def plot(rows: Sequence[Row], path: Path) -> None:
    """What is left of each month after the last one, a line a way: means over seeds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    last = [row for row in rows if row["after"] == MONTHS]
    for way in (RAW, ONCE, GROWING, STILL, CONSTANT):
        of_way = [row for row in last if row["way"] == way]
        if of_way:
            shares = [100 * sum(column) / len(of_way) for column in zip(*(row["share"] for row in of_way), strict=True)]
            axes.plot(range(1, MONTHS + 1), shares, marker="o", label=f"{way}, {of_way[0]['tokens']} tokens")
    axes.set(xlabel="month", ylabel="questions answered after month 12, %", ylim=(0, 103), xticks=range(1, MONTHS + 1))
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=(GROWING, CONSTANT, ONCE, RAW), metavar="WAY",
                        default=[RAW, GROWING, STILL, CONSTANT, ONCE])  # fmt: skip
    parser.add_argument("--steps", type=int, default=120, help="of a month")
    parser.add_argument("--steps-at-once", type=int, default=300, help="of all twelve texts as one")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "lcc-year", help="for memories")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(arguments.out, itemgetter("seed", "way", "after"))
    for seed in arguments.seeds:
        year = Year(seed, arguments.work, arguments.steps, arguments.steps_at_once)
        for way in arguments.ways:
            wanted = [MONTHS] if way in (ONCE, RAW) else range(1, MONTHS + 1)
            missing = sweep.missing((seed, way, number) for number in wanted)
            for row in year.rows(way, [number for *_, number in missing]):
                sweep.add(row)
                shares = " ".join(f"{share:.2f}" for share in row["share"])
                print(f"{seed} {way}, {row['tokens']} tokens, {row['seconds']} s: {shares}", flush=True)
    plot(sweep.rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
