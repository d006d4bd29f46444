"""One question behind several memories and the base: what it costs to look before one of them answers.

    python -m benchmarks.bank.cost --out benchmarks/results/bank/cost.json

Each run takes documents that have never been seen, memories of them that are attached beforehand, a question about the
first one, and measures in turn, for 1, 3 and 5 candidates:

- ``today``: ``lcc.inference.requests.answer`` from the right memory, which is all that it knows;
- ``one memory``: the same answer by ``read_first`` and ``go_on``;
- ``one pass``: the question behind all candidates and behind the base (the chat's prefix alone) in one pass, its first
  tokens' entropies, and the answer gone on with behind the right memory;
- ``base apart``: the same, and the base in a pass of its own, so that it has the bits that it has alone;
- ``one by one``: each of them in a pass of its own;
- ``texts``: the candidates' texts in the place of their memories, each read with the question (in-context routing).

``times`` is a time, and ``times_flops`` the floating point operations counted from shapes, over those of ``today``. A
second call measures what is missing. Figures are medians over the rounds of a run, and over runs in the table.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median

import torch

import lcc
from benchmarks.bank.flops import answer_flops, pass_flops
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.report_parts import head, line
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.common.timing import in_turn
from lcc.inference.attached import attached
from lcc.inference.reader import prefill_chat
from lcc.inference.requests import Request, answer
from lcc.modeling.decoding import Prompt
from lcc.modeling.first_tokens import read_first
from lcc.modeling.generation import end_tokens
from lcc.modeling.kv import KV
from lcc.modeling.model_copy import share_weights
from lcc.synthetic.people import Document, document, people_for
from lcc.text.chat_format import ChatFormat

CANDIDATES = (1, 3, 5)
ATTRIBUTES, LONGEST = 6, 24


@dataclass(frozen=True)
class Way:
    """One way to the answer: ``answer()`` gives it, ``passes`` are the past and the new tokens of each pass before."""

    name: str
    candidates: int
    answer: Callable[[], str]
    passes: Sequence[tuple[Sequence[int], int]]


class Run:
    """A question about the first of ``max(CANDIDATES)`` documents, of which there are memories."""

    def __init__(self, number: int, words: int, ratio: float):
        model, self.tokenizer = load()
        # What a bank holds, too: making a copy for each question would take longer than reading the question.
        self.model = share_weights(model)
        self.chat = ChatFormat.of(self.tokenizer)
        rng = random.Random(f"bank cost {number}")
        self.documents = [document(rng, people_for(words, ATTRIBUTES), ATTRIBUTES) for _ in range(max(CANDIDATES))]
        self.question = rng.choice(self.documents[0].questions()).text
        self.memories = [self._attached(each, ratio) for each in self.documents]
        self.base = prefill_chat(self.model, self.chat, "")

    def _attached(self, of: Document, ratio: float) -> KV:
        memory = lcc.compile(
            self.model, self.tokenizer, of.text, compiler="flashmem", ratio=ratio, certify=False, progress=False
        )
        with attached(self.model, memory, verify=False) as before:
            return before.visible

    @cached_property
    def asked(self) -> tuple[int, ...]:
        """The question behind a text."""
        return tuple(self.chat.query_ids(self.question))

    @cached_property
    def asked_base(self) -> tuple[int, ...]:
        """The question behind the chat's prefix."""
        return tuple(self.chat.query_ids(self.question, after_text=False))

    @cached_property
    def texts(self) -> list[tuple[int, ...]]:
        """The documents, each with the question behind it."""
        return [(*self.chat.ids(each.text), *self.asked) for each in self.documents]

    def ways(self) -> list[Way]:
        """All that is measured, ``today`` first."""
        alone = [self._pass(self.memories[:1], self.asked)]
        ways = [Way("today", 1, self._today, alone), Way("one memory", 1, partial(self._read, 1, False), alone)]
        for count in CANDIDATES:
            seen = self.memories[:count]
            longest, base = max(self.asked, self.asked_base, key=len), self._pass([self.base], self.asked_base)
            ways += [
                Way("one pass", count, partial(self._read, count, True), [self._pass([*seen, self.base], longest)]),
                Way("base apart", count, partial(self._base_apart, count), [self._pass(seen, self.asked), base]),
                Way(
                    "one by one", count, partial(self._one_by_one, count),
                    [*(self._pass([kv], self.asked) for kv in seen), base],
                ),
                Way(
                    "texts", count, partial(self._texts, count),
                    [self._pass([self.base] * (count + 1), max(self.texts[:count], key=len))],
                ),
            ]  # fmt: skip
        return ways

    @staticmethod
    def _pass(seen: Sequence[KV], ids: Sequence[int]) -> tuple[list[int], int]:
        return [len(kv) for kv in seen], len(ids)

    def _today(self) -> str:
        request = Request((self.question,), max_new_tokens=LONGEST)
        return next(answer(self.model, self.chat, self.memories[0], [request])).text

    def _first(self, prefixes: Sequence[KV], asked: Sequence[tuple[int, ...]]) -> Callable[[], str]:
        """Read each behind its own prefix and look at what comes first; returns how the first of them goes on."""
        first = read_first(self.model, prefixes, [Prompt(ids, prefix=number) for number, ids in enumerate(asked)])
        first.entropy.tolist()
        ends = end_tokens(self.model, self.chat.end).__contains__
        return lambda: self._text(first.go_on([0], ends, LONGEST)[0])

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _read(self, count: int, base: bool) -> str:
        seen = [*self.memories[:count], *[self.base] * base]
        return self._first(seen, [*[self.asked] * count, *[self.asked_base] * base])()

    def _base_apart(self, count: int) -> str:
        self._first([self.base], [self.asked_base])
        return self._read(count, False)

    def _one_by_one(self, count: int) -> str:
        self._first([self.base], [self.asked_base])
        right, *_ = [self._first([kv], [self.asked]) for kv in self.memories[:count]]
        return right()

    def _texts(self, count: int) -> str:
        return self._first([self.base] * (count + 1), [*self.texts[:count], self.asked_base])()


def measure(number: int, words: int, ratio: float, rounds: int) -> list[Row]:
    """The rows of a run."""
    run = Run(number, words, ratio)
    ways = run.ways()
    said = [way.answer() for way in ways]
    # From its text the model may answer better than from a memory.
    assert len({text for way, text in zip(ways, said, strict=True) if way.name != "texts"}) == 1, said
    seconds = list(in_turn({f"{way.name} {way.candidates}": way.answer for way in ways}, rounds).values())
    flops = [run_flops(run, way, text) for way, text in zip(ways, said, strict=True)]
    sizes = {
        "memory_tokens": len(run.memories[0]) - len(run.base), "text_tokens": len(run.texts[0]) - len(run.asked),
        "question_tokens": len(run.asked), "answer_tokens": len(run.chat.ids(said[0])),
    }  # fmt: skip
    where = describe() | {"run": number, "words": words, "ratio": ratio, "rounds": rounds} | sizes
    return [
        where | {
            "way": way.name, "candidates": way.candidates, "seconds": seconds[at], "flops": flops[at],
            "times": seconds[at] / seconds[0], "times_flops": flops[at] / flops[0],
        }
        for at, way in enumerate(ways)
    ]  # fmt: skip


def run_flops(run: Run, way: Way, said: str) -> int:
    """Those of the passes before the first token, and of the answer."""
    past, new = way.passes[0]
    before = sum(pass_flops(run.model, *each) for each in way.passes)
    return before + answer_flops(run.model, past[0] + new, len(run.chat.ids(said)))


def summary(rows: Sequence[Row]) -> str:
    """A table of medians over runs."""
    lines = head(("way", "candidates", "runs", "ms", "times today", "MFLOP", "times today's"))
    for key in dict.fromkeys((row["way"], row["candidates"]) for row in rows):
        found = [row for row in rows if (row["way"], row["candidates"]) == key]
        middle = {name: median(row[name] for row in found) for name in ("seconds", "times", "flops", "times_flops")}
        lines.append(line((
            key[0], str(key[1]), str(len(found)), f"{1e3 * middle['seconds']:.1f}", f"{middle['times']:.2f}",
            f"{middle['flops'] / 1e6:.1f}", f"{middle['times_flops']:.2f}",
        )))  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--words", type=int, default=400)
    parser.add_argument("--ratio", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    sweep: Sweep[int] = Sweep(arguments.out, lambda row: row["run"])
    for number in sweep.missing(arguments.runs):
        sweep.replace(number, measure(number, arguments.words, arguments.ratio, arguments.rounds))
    print(json.dumps({"rows": sweep.rows}) if arguments.json else summary(sweep.rows))


if __name__ == "__main__":
    main()
