"""Adapters that share a question's cache, beside those that do not, and beside K and V.

    python -m benchmarks.bank.adapters --documents 0 1 2 3 4 --out benchmarks/results/bank/adapters.json

A document is of people that the embedded model never saw. An adapter is trained on it twice: with the cache-sharing
loss (CDLM, arXiv 2605.28889, equation 3), whose questions the plain model reads, and by plain context distillation,
whose questions the LoRA reads. Each is read both ways: behind K and V of the question that the plain model made, and
behind its own. ``score`` is the share of questions that are answered exactly, ``general`` that of queries that have
nothing to do with the text, and ``kl`` is from the full text's reader over its own answers. ``seconds`` are those of
the processor, without what the model asks itself, which is made once a document. A second call measures what is
missing.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from statistics import mean
from typing import Any

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.report_parts import head, line
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.compile.starts import ANSWER_TOKENS, Exam
from lcc.cli.options import parse_settings
from lcc.inference.reader import Reader
from lcc.inference.requests import Request
from lcc.memory.payload import AdapterPayload
from lcc.synthetic.exam import general_exam, score
from lcc.synthetic.seeds import DEMO
from lcc.text.queries import load_queries

GENERAL_QUERIES = 60
STEPS = {"recipe": "fast", "certify": False, "progress": False}
# What is compiled, and how each of it is read: whether an adapter finds a question's K and V of the plain model.
COMPILED: dict[str, dict[str, Any]] = {
    "direct_kv": {"compiler": "direct_kv"},
    "lcc": {"compiler": "lcc"},
    "sharing": {"compiler": "adapter"},
    "not sharing": {"compiler": "adapter", "cache_sharing": False},
}
READ: dict[str, dict[str, bool | None]] = {
    "direct_kv": {"direct_kv, ratio 16": None},
    "lcc": {"lcc, ratio 16": None},
    "sharing": {
        "trained with a shared cache, read with it": True,
        "trained with a shared cache, read without": False,
    },
    "not sharing": {
        "trained without, read with a shared cache": True,
        "trained without, read without": False,
    },
}
TEXTS = ("full text", "no text")


def measure(exam: Exam, folder: Path, given: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of one document.

    Args:
        folder: where the document's distillation data is kept.
        given: settings of all that is compiled.
    """
    model, tokenizer, text = exam.model, exam.tokenizer, exam.subject.text
    where = describe()
    for name, reader in zip(TEXTS, (exam.full, Reader.of_text(model, exam.chat, "")), strict=True):
        yield where | {"read": name, "seconds": 0.0, "bytes": reader.visible.nbytes} | _graded(exam, reader)
    compiled = partial(lcc.compile, model, tokenizer, text, surrogates=folder)
    compiled(**STEPS | {"compiler": "direct_kv", "steps": 1})  # makes the data
    for name, options in COMPILED.items():
        began = time.process_time()
        memory = compiled(**STEPS | options | given)
        seconds = round(time.process_time() - began, 2)
        made = where | {"seconds": seconds, "bytes": memory.nbytes, "curve": memory.curve, "options": options | given}
        for read, sharing in READ[name].items():
            reader = Reader.of_memory(model, exam.chat, _read(memory, sharing))
            yield made | {"read": read} | _graded(exam, reader)


def _read(memory: lcc.Memory, sharing: bool | None) -> lcc.Memory:
    """The memory as it is read: an adapter behind the plain model's K and V of a question, or behind its own."""
    if not isinstance(memory.payload, AdapterPayload):
        return memory
    adapter = replace(memory.payload.adapter, cache_sharing=bool(sharing))
    return replace(memory, payload=AdapterPayload(adapter))


def _graded(exam: Exam, reader: Reader) -> Row:
    queries = general_exam(random.Random(DEMO), GENERAL_QUERIES, load_queries())
    answers = reader.answer([Request((query.text,), max_new_tokens=ANSWER_TOKENS) for query in queries])
    return exam.grade(reader) | {"general": score(answers, queries)}


def markdown(rows: list[Row]) -> str:
    """A table of means over the documents."""
    by_reading: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_reading[row["read"]].append(row)
    titles = ("read", "documents", "exact answers", "general queries", "KL (nats)", "KiB", "seconds")
    lines = head(titles)
    for name, own in by_reading.items():
        score_, general, kl, size, seconds = (
            mean(row[figure] for row in own) for figure in ("score", "general", "kl", "bytes", "seconds")
        )
        figures = (f"{score_:.1%}", f"{general:.1%}", f"{kl:.3f}", f"{size / 1024:.0f}", f"{seconds:.1f}")
        lines.append(line((name, str(len(own)), *figures)))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs="+", default=["0", "1", "2", "3", "4"], help="numbers of documents")
    parser.add_argument("--set", nargs="*", default=[], dest="settings", metavar="NAME=VALUE", help="of all compilers")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "lcc-adapters", help="its folder")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sweep = Sweep(arguments.out, itemgetter("document", "read"))
    readings = [*TEXTS, *(read for ways in READ.values() for read in ways)]
    for document in arguments.documents:
        if not sweep.missing(product([document], readings)):
            continue
        for row in measure(Exam(document), arguments.data / document, parse_settings(arguments.settings)):
            sweep.add({"document": document} | row)
            print(f"{document} {row['read']}: {row['seconds']} s, {row['score']:.1%} right", flush=True)
    print(markdown(sweep.rows), end="")


if __name__ == "__main__":
    main()
