"""What a start is worth: compilers that go on from another one's memory, beside the same ones from nothing.

    python -m benchmarks.compile.starts --documents 0 1 2 3 --ratios 8 16 --out starts.json
    python -m benchmarks.compile.starts --model DIR --documents council_minutes kiln_manual --ratios 8 --out real.json
    python -m benchmarks.report starts.json -o DIR

A document is a number, of a text about people that the embedded model never saw, or the name of one of the package's
stories. Every memory of a document is asked all its questions. ``kl`` is from the full text's reader, over its own
answers. ``seconds`` are those of the processor, without what the model asks itself: that is made once a document, for
all. What a chain goes on from is in its seconds. A second call measures what is missing.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.compile import starts_report
from benchmarks.compile.starts_report import FIRST_TOKENS
from lcc.cli.loading import load_model
from lcc.cli.options import parse_settings
from lcc.evaluation.examples import Example
from lcc.evaluation.metrics import METRICS
from lcc.evaluation.stories import ANSWER_TOKENS as STORY_TOKENS
from lcc.evaluation.stories import UNANSWERABLE, load_story
from lcc.inference.reader import Reader
from lcc.inference.requests import Request
from lcc.modeling.prefill import prefill
from lcc.synthetic import people
from lcc.synthetic.exam import score
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


# Behind a start, the best of three rates on three other documents.
CHAINS = {
    "gradmem": Chain("gradmem", {}),
    "gradmem, its start alone": Chain("gradmem", {"writes": 0}),
    "gradmem, nothing learned": Chain("gradmem", {"learned": "none"}),
    "attention_matching": Chain("attention_matching", {}),
    "attention_matching omp": Chain("attention_matching", {"matched_keys": "omp"}),
    "flashmem": Chain("flashmem", {}),
    "flashmem last": Chain("flashmem", {"consolidator": "last"}),
    "direct_kv 30": _trained("direct_kv", 30),
    "direct_kv 110": _trained("direct_kv", 110),
    "attention_matching > direct_kv 40": _trained("direct_kv", 40, "attention_matching", learning_rate=0.2),
    "flashmem > direct_kv 40": _trained("direct_kv", 40, "flashmem", learning_rate=0.2),
    "lcc 30": _trained("lcc", 30),
    "lcc 110": _trained("lcc", 110),
    "attention_matching > lcc 30": _trained("lcc", 30, "attention_matching"),
    "flashmem > lcc 30": _trained("lcc", 30, "flashmem"),
}


@dataclass(frozen=True)
class Subject:
    """A text, its questions, and how answers to them are scored: the share that is right."""

    text: str
    questions: list[str]
    score: Callable[[list[str]], float]
    answer_tokens: int

    @classmethod
    def of(cls, document: str) -> Subject:
        """The text of a number, or the story of a name."""
        if document.isdecimal():
            written = people.document(random.Random(DEMO + 1000 + int(document)), PEOPLE, ATTRIBUTES)
            asked = written.questions()
            return cls(written.text, [one.text for one in asked], lambda said: score(said, asked), ANSWER_TOKENS)
        story = load_story(document)
        told = [one for one in story.examples if not one.task.endswith(UNANSWERABLE)]
        return cls(story.text, [one.question for one in told], partial(_right, told), STORY_TOKENS)


def _right(examples: Sequence[Example], answers: Sequence[str]) -> float:
    return mean(METRICS[one.metric](said, one.answers) for one, said in zip(examples, answers, strict=True))


class Exam:
    """A document's questions, and what the reader of its full text says to them."""

    def __init__(self, document: str, model: str | None = None):
        self.model, self.tokenizer = load() if model is None else load_model(model)
        self.subject, self.chat = Subject.of(document), ChatFormat.of(self.tokenizer)
        self.full = Reader.of_text(self.model, self.chat, self.subject.text)
        self.said = self.full.say(self.subject.questions, self.subject.answer_tokens)

    def grade(self, reader: Reader) -> Row:
        """How near ``reader`` is to the full text's, and the share of questions that it answers exactly."""
        return {"kl": self.said.kl(reader), "score": self.score(reader)}

    def score(self, reader: Reader) -> float:
        """The share of questions that are answered rightly."""
        tokens = self.subject.answer_tokens
        asked = [Request((question,), max_new_tokens=tokens) for question in self.subject.questions]
        return self.subject.score(reader.answer(asked))

    def first_tokens(self, ratio: float) -> Reader:
        """A reader of as many first tokens of the text as a memory has."""
        ids = self.chat.ids(self.subject.text)
        with torch.no_grad():
            kept = prefill(self.model, [*self.chat.prefix_ids, *ids[: math.ceil(len(ids) / ratio)]])
        return Reader(self.model, self.chat, kept)


def measure(
    exam: Exam, ratio: float, chains: Collection[str], folder: Path, given: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Row]:
    """The rows of one document at one ratio, of these chains and of those that they go on from.

    Args:
        folder: where the document's distillation data is kept.
        given: settings of all chains that train, in place of their own.
    """
    compiled = partial(
        lcc.compile,
        exam.model,
        exam.tokenizer,
        exam.subject.text,
        ratio=ratio,
        certify=False,
        progress=False,
        surrogates=folder,
    )
    needed = set(chains) | {CHAINS[name].start for name in chains}
    if any("steps" in CHAINS[name].options for name in chains):
        compiled(compiler="direct_kv", **STEPS | given | {"steps": 1})  # makes the data
    where = describe() | {"ratio": ratio, "full_text": exam.score(exam.full)}
    yield where | {"chain": FIRST_TOKENS, "seconds": 0.0} | exam.grade(exam.first_tokens(ratio))
    made: dict[str | None, tuple[lcc.Memory | None, float]] = {None: (None, 0.0)}
    for name in filter(needed.__contains__, CHAINS):
        chain = CHAINS[name]
        start, seconds = made[chain.start]
        began = time.process_time()
        options = chain.options | (given if "steps" in chain.options else {})
        memory = compiled(compiler=chain.compiler, start=start, **options)
        made[name] = memory, seconds + time.process_time() - began
        row = {"chain": name, "seconds": round(made[name][1], 2), "curve": memory.curve, "options": options}
        yield where | row | exam.grade(Reader.of_memory(exam.model, exam.chat, memory))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file; the embedded model by default")
    parser.add_argument("--documents", nargs="+", default=["0", "1", "2", "3"], help="numbers, or names of stories")
    parser.add_argument("--ratios", type=float, nargs="+", default=[8, 16])
    parser.add_argument("--chains", nargs="+", choices=CHAINS, default=list(CHAINS), metavar="CHAIN")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="NAME=VALUE", help="where it trains")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "lcc-starts", help="a folder for it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    given = parse_settings(arguments.settings)
    sweep = Sweep(arguments.out, itemgetter("document", "ratio", "chain"), kind=starts_report.KIND)
    for document, ratio in product(arguments.documents, arguments.ratios):
        missing = [chain for _, _, chain in sweep.missing(product([document], [ratio], arguments.chains))]
        if not missing:
            continue
        for row in measure(Exam(document, arguments.model), ratio, missing, arguments.data / document, given):
            sweep.add({"document": document} | row)
            figures = f"{row['seconds']} s, KL {row['kl']:.3f}, {row['score']:.1%} right"
            print(f"{document} {ratio:g} {row['chain']}: {figures}", flush=True)
    print(starts_report.markdown(arguments.out.stem, sweep.rows), end="")


if __name__ == "__main__":
    main()
