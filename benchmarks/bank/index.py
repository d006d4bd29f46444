"""What the index of a large bank costs: to fill, to open, to search, to make anew.

    python -m benchmarks.bank.index --out benchmarks/results/bank/index.json

The memories are files of a few numbers, whose questions are words by Zipf's law: the word of rank r is as frequent as
1 / r. Queries are ``rare``: two words of rank above 10,000; ``common``: eight of the 30 most frequent; ``mixed``: six
of those, two of rank 100 to 2,000 and a rare one; ``asked``: a question that a memory carries, with its words in
another order: ``first`` is the share that find that memory first. ``open`` is of an index that is up to date;
``reconcile`` finds 100 memories new. Times are of the wall, and ``processor`` is the median of the processor's, which
other work on the machine does not stretch. A second call measures what is missing.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import accumulate, product
from operator import itemgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from lcc.modeling.kv import KV
from lcc.utils.outputs import MEMORY_SUFFIX

WORDS, QUESTION_WORDS = 50_000, 9
REPEATS, QUERIES = 5, 300
NEW = 100


class Language:
    """Words by Zipf's law."""

    def __init__(self, seed: int = 0):
        self._random = random.Random(seed)
        self._words = [f"w{rank}" for rank in range(1, WORDS + 1)]
        self._weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))

    def question(self) -> str:
        """A question of nine words."""
        return " ".join(self._random.choices(self._words, cum_weights=self._weights, k=QUESTION_WORDS))

    def query(self, kind: str) -> str:
        """A query of a kind; see the module."""
        common = self._random.sample(self._words[:30], 8)
        rare = self._random.sample(self._words[10_000:], 2)
        if kind == "mixed":
            return " ".join([*common[:6], *self._random.sample(self._words[100:2000], 2), rare[0]])
        return " ".join({"common": common, "rare": rare}[kind])

    def shuffled(self, question: str) -> str:
        """The question with its words in another order."""
        words = question.split()
        return " ".join(self._random.sample(words, len(words)))


def memory(questions: tuple[str, ...]) -> lcc.Memory:
    """A memory of a few numbers."""
    kv = KV(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    return lcc.Memory(
        payload=lcc.KVPayload(kv), prefix_ids=(), ratio=8.0, source_tokens=16, source_sha256="", rope={},
        fingerprint={"model_weights": "none"}, settings={}, questions=questions,
    )  # fmt: skip


def measure(folder: Path, memories: int, questions: int) -> Iterator[dict[str, Any]]:
    """A row for each thing that is timed."""
    language = Language()
    asked = {f"m{number}": tuple(language.question() for _ in range(questions)) for number in range(memories)}
    with lcc.MemoryBank(folder, create=True) as bank:
        yield _timed("put, all memories", lambda: [bank.put(key, memory(own)) for key, own in asked.items()])
    yield _timed("open", lambda: lcc.MemoryBank(folder).close(), REPEATS)
    for number in range(NEW):
        shutil.copy(bank.folder.memory(f"m{number}"), bank.folder.memories / f"new{number}{MEMORY_SUFFIX}")
    yield _timed(f"reconcile, {NEW} new", lambda: lcc.MemoryBank(folder).close())
    with lcc.MemoryBank(folder) as bank:
        bank.remove(*(f"new{number}" for number in range(NEW)))
        yield from _searches(bank, language, asked)
        yield _timed("documents", bank.documents, REPEATS)
        yield _timed("rebuild", bank.rebuild)
    files = sum(path.stat().st_size for path in bank.folder.memories.iterdir())
    yield {"what": "bytes", "index": bank.folder.index.stat().st_size, "memories' files": files}


def _searches(bank: lcc.MemoryBank, language: Language, asked: dict[str, tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    for kind in ("rare", "common", "mixed"):
        queries = iter([language.query(kind) for _ in range(QUERIES)])
        yield _timed(f"search, {kind}", lambda queries=queries: bank.search(next(queries)), QUERIES)
    keys = random.Random(1).choices(list(asked), k=QUERIES)
    shuffled = iter([(key, language.shuffled(asked[key][0])) for key in keys])
    first = 0

    def find() -> None:
        nonlocal first
        key, query = next(shuffled)
        first += [hit.key for hit in bank.search(query, 1)] == [key]

    row = _timed("search, asked", find, QUERIES)
    yield row | {"first": first / QUERIES}


def _timed(what: str, call: Callable[[], object], repeats: int = 1) -> dict[str, Any]:
    """Seconds of the calls: the median, of many the 99th percentile, and the processor's."""
    walls, processor = [], []
    for _ in range(repeats):
        wall, own = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - own)
    row = {"what": what, "calls": repeats, "seconds": median(walls), "processor": median(processor)}
    return row | ({"p99": quantiles(walls, n=100)[98]} if repeats >= 100 else {})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", type=int, default=[100, 10_000])
    parser.add_argument("--questions", nargs="+", type=int, default=[30, 100], help="that each memory carries")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, itemgetter("memories", "questions"))
    for memories, questions in product(arguments.memories, arguments.questions):
        if not sweep.missing([(memories, questions)]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            size = {"memories": memories, "questions": questions}
            rows = [size | row | describe() for row in measure(Path(folder, "bank"), memories, questions)]
        sweep.replace((memories, questions), rows)
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
