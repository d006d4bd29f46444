"""The answers behind the fidelity table: what is asked about which documents, and who answers."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.fidelity.methods import PEERS, Options, Workbench
from lcc.errors import DivergedError
from lcc.evaluation import Example, FullText, Method, NoText, Result, beside, evaluate
from lcc.evaluation.suites import general_queries, suite
from lcc.pipeline.settings import CompileSettings
from lcc.utils.outputs import write_bytes

BOUNDS, MADE = "bounds", "made.json"
LOOKUPS = ("needle", "key_value")
Document = tuple[Example, ...]


@dataclass(frozen=True)
class Study:
    """Each document's examples, the settings that all methods share, and where answers are kept."""

    documents: tuple[Document, ...]
    settings: CompileSettings
    folder: Path

    def place(self, unit: Unit) -> Path:
        """Where a unit's answers are kept."""
        return self.folder / "answers" / digest(self.documents[unit.document][0].context)[:16] / unit.folder


@dataclass(frozen=True)
class Unit:
    """One method's answers about one document.

    Attributes:
        document: its place in the study.
        method: a key of ``PEERS``, or ``BOUNDS`` for full text and no text.
        ratio: 0 for a method whose state does not depend on it.
    """

    document: int
    method: str
    ratio: float = 0.0
    options: Options = field(default_factory=dict, hash=False)

    @property
    def folder(self) -> str:
        """A name of its own among the units of its document."""
        return f"{self.method}-{self.ratio:g}-{digest(self.options)[:8]}"


def draw_documents(reading: int, lookups: int, lengths: Sequence[int], general: int, seed: int) -> tuple[Document, ...]:
    """Documents to be read, with ``general`` queries beside each, then ``lookups`` each of needles and of lists."""
    about = suite("reading", reading, seed, lengths)
    examples = about + beside(general_queries(seed, general), dict.fromkeys(example.context for example in about))
    for name in LOOKUPS:
        examples += suite(name, lookups, seed, lengths)
    grouped: dict[str, list[Example]] = {}
    for example in examples:
        grouped.setdefault(example.context, []).append(example)
    return tuple(map(tuple, grouped.values()))


def answers(study: Study, units: Sequence[Unit], workers: int = 1) -> Iterator[tuple[Unit, list[Result] | None]]:
    """Each unit with its results, None if the method diverged, in the order in which they are done.

    Answers are on disk as soon as a unit is done, and what is there is not asked again.
    """
    if workers == 1:
        yield from ((unit, answer(study, unit)) for unit in units)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    try:
        waiting = {pool.submit(answer, study, unit): unit for unit in units}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """One thread, and no life beyond that of the process that asks: a worker left alone would go on for ever."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def answer(study: Study, unit: Unit) -> list[Result] | None:
    """One unit's results; None if the method diverged."""
    folder = study.place(unit)
    try:
        results = evaluate(_methods(study, unit), study.documents[unit.document], folder, progress=False)
    except DivergedError:
        return None
    if not (folder / MADE).exists():
        write_bytes(folder / MADE, json.dumps(describe()).encode())
    return results


def made(study: Study, unit: Unit) -> dict[str, str]:
    """When, from which commit and with which versions a unit was answered: perhaps by another call than this one."""
    return json.loads((study.place(unit) / MADE).read_text("utf-8"))


def _methods(study: Study, unit: Unit) -> list[Method]:
    model, tokenizer = load()
    if unit.method == BOUNDS:
        return [FullText(model, tokenizer), NoText(model, tokenizer)]
    # Without a ratio: one that any text is long enough for.
    settings = study.settings.replace(ratio=unit.ratio or 1.0)
    bench = Workbench(model, tokenizer, settings, study.folder)
    return [PEERS[unit.method].build(unit.method, bench, unit.options)]


def digest(value: Any) -> str:
    """24 hexadecimal digits that tell one JSON-ready value from another: names of files and folders."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
