"""``lcc bank add``: documents become memories, one by one; what is done is skipped, what fails is reported."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..bank.bank import MemoryBank
from ..bank.folder import key_of
from ..errors import InputError, LCCError, MismatchError
from ..memory.memory import Memory
from ..pipeline.batch import Job, Outcome, compile_job
from ..pipeline.options import CompileOptions, Run
from ..utils.hashing import text_digest
from ..utils.outputs import MEMORY_SUFFIX, input_paths, model_paths
from ..utils.progress import Reporter
from ..utils.utf8 import STANDARD_INPUT, read_file
from .loading import load_model


def keys_of(sources: Iterable[Path]) -> dict[str, Path]:
    """The documents and memories' files to add, by the keys that they get.

    Raises:
        InputError: a name cannot be a key, two names become the same key, or standard input is among them.
    """
    keys: dict[str, Path] = {}
    for source in sources:
        if str(source) == STANDARD_INPUT:
            raise InputError("standard input has no name for a memory of a bank: write it to a file")
        key = key_of(source)
        if key in keys:
            raise InputError(f"{keys[key]} and {source} would both become the memory {key}: rename one")
        keys[key] = source
    return keys


def add_documents(
    bank: MemoryBank,
    model: str | None,
    sources: Mapping[str, Path],
    options: CompileOptions,
    reporter: Reporter,
    *,
    read: Iterable[str | None] = (),
    keep_text: bool = True,
    force: bool = False,
) -> list[Outcome]:
    """Compile documents into a bank, and import memories' files; an error in one does not stop the rest.

    Args:
        model: as ``load_model`` takes it; it is loaded if there is a document.
        sources: by key; see ``keys_of``.
        read: what ``options`` were read from: those that name files are never replaced.
        keep_text: keep the documents' texts, as they are compiled, beside their memories; False: forget those that
            were kept.
        force: compile again, or import, what is there but differs.

    Raises:
        InputError: the model cannot be used.
        MismatchError: the bank is of another model.
    """
    loaded: tuple[Any, Any] = (None, None)
    if not all(map(_is_memory, sources.values())):
        loaded = load_model(model)
        bank.require_model(*loaded)
    inputs = (*input_paths(*sources.values(), *read), *model_paths(model))
    run, outcomes = Run(restart=force), []
    if not keep_text:
        bank.forget_text(*sources)
    for done, (key, source) in enumerate(sources.items()):
        reporter.document(source.name, done, len(sources))
        job, began = Job(source, bank.folder.memory(key), inputs), time.monotonic()
        try:
            if _is_memory(source):
                outcome = Outcome(str(source), str(job.output), _import(bank, key, source, force), 0.0)
            else:
                if keep_text:
                    _keep_text(bank, key, options.redacted(read_file(source), loaded[1]), force)
                outcome = compile_job(*loaded, job, options, run, reporter)
                bank.refresh(key)
        except LCCError as error:
            outcome = Outcome(str(source), str(job.output), "failed", round(time.monotonic() - began, 3), str(error))
        outcomes.append(outcome)
    reporter.document("", len(sources), len(sources))
    return outcomes


def _is_memory(source: Path) -> bool:
    return source.name.endswith(MEMORY_SUFFIX)


def _keep_text(bank: MemoryBank, key: str, text: str, force: bool) -> None:
    """Keep the text before its memory is made, unless a memory of another text stands there and is to stay."""
    digest = text_digest(text)
    there = bank.document(key).source_sha256 if key in bank else None
    if (force or there in (None, digest)) and bank.folder.read_text(key, digest) is None:
        bank.folder.write_text(key, text)


def _import(bank: MemoryBank, key: str, source: Path, force: bool) -> str:
    """Import a memory's file, unless that memory is there.

    Raises:
        MismatchError: another one is there, and is to stay.
        LCCError: as ``MemoryBank.put``.
    """
    given = Memory.load(source)
    if key in bank and not force:
        stored = bank.memory(key)
        if stored.metadata() == given.metadata() and stored.digest == given.digest:
            return "skipped"
        raise MismatchError(f"the memory {key} is in the bank already and differs: rename the file, or give --force")
    bank.put(key, given)
    return "imported"
