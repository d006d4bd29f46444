"""Many documents into a folder of memories: what is done is skipped, what was killed goes on, what fails is reported.

The folder is the queue's only state, so any number of processes may work on it: each document is locked while it is
compiled, and the operating system drops the lock of a process that dies.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, LCCError
from ..utils.outputs import MEMORY_SUFFIX, input_paths, make_folder
from ..utils.progress import Reporter, reporting
from ..utils.utf8 import read_file
from .compile_to import compile_to, memory_output
from .options import CompileOptions, Run

SUFFIX = MEMORY_SUFFIX


@dataclass(frozen=True)
class Job:
    """A document, the memory file that it becomes, and all files that are read along the way."""

    source: Path
    output: Path
    inputs: tuple[Path, ...] = ()

    def absolute(self) -> Job:
        """The same for a process that works in another folder."""
        return Job(self.source.absolute(), self.output.absolute(), tuple(path.absolute() for path in self.inputs))


@dataclass(frozen=True)
class Outcome:
    """What became of a document.

    Attributes:
        status: ``compiled``; ``skipped``: its memory was there; ``locked``: another process is at it; ``failed``.
        seconds: spent on it.
        error: why it failed.
    """

    source: str
    output: str
    status: str
    seconds: float
    error: str | None = None


def compile_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Iterable[str | Path],
    folder: str | Path,
    *,
    force: bool = False,
    progress: bool | Reporter = True,
    distributed: bool = False,
    checkpoint_every: int = 50,
    surrogates: str | Path | None = None,
    **options: Any,
) -> list[Outcome]:
    """Compile UTF-8 text files into ``folder``, one memory each; an error in one does not stop the rest.

    A memory that is there is skipped if its text, settings, compiler, target and model are those asked for. Queries and
    questions are not recorded in a memory: delete the memories after changing them.

    Args:
        force: compile again what is there but differs, and replace files that are no memories.
        distributed: see ``lcc.compile``; the processes work on each document together.
        checkpoint_every, surrogates: see ``lcc.compile``.
        **options: those of ``lcc.compile``; of the questions each document gets those whose context it is, and those
            without a context. A document that lacks a passage of ``redact`` fails.

    Returns:
        One outcome a document, in their order.

    Raises:
        InputError: no documents, two that would become the same file, or a setting that cannot be used.
        MemoryFileError: the folder cannot be made.
    """
    run = Run.of(None, checkpoint_every, force, surrogates, distributed)
    jobs = make_jobs(sources, folder, options.get("queries"), options.get("questions"))
    chosen, outcomes = CompileOptions.of(**options), []
    with reporting(run.ranks.main and progress) as reporter:
        for done, job in enumerate(jobs):
            reporter.document(job.source.name, done, len(jobs))
            outcomes.append(compile_job(model, tokenizer, job, chosen, run, reporter))
        reporter.document("", len(jobs), len(jobs))
    return outcomes


def make_jobs(sources: Iterable[str | Path], folder: str | Path, *inputs: object) -> list[Job]:
    """The documents with their files in ``folder``, which is made if it is missing.

    Args:
        *inputs: what else is read; those that name files are never replaced.

    Raises:
        InputError: no documents, or two that would become the same file.
        MemoryFileError: the folder is a link, or cannot be made.
    """
    folder, paths = Path(folder), list(map(Path, sources))
    read = input_paths(*paths, *inputs)
    jobs: dict[Path, Job] = {}
    for source in paths:
        output = folder / (source.stem + SUFFIX)
        if output in jobs:
            raise InputError(f"{jobs[output].source} and {source} would both become {output}: rename one")
        jobs[output] = Job(source, output, read)
    if not jobs:
        raise InputError("there are no documents to compile")
    make_folder(folder)
    return list(jobs.values())


def compile_job(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
) -> Outcome:
    """Compile one document, unless it is done or another process is at it; errors become the outcome.

    Args:
        run: with ``restart``, what is there but differs is compiled again.
    """
    ranks, began = run.ranks, time.monotonic()
    error = None
    try:
        text = options.redacted(ranks.from_main(lambda: read_file(job.source)), tokenizer)
        output = memory_output(job.output, text, job.inputs, run.restart)
        status: str = compile_to(model, tokenizer, text, output, options, run, reporter)
    except Exception as failure:
        if ranks.count > 1 and not isinstance(failure, LCCError):
            # The other processes wait for this one: its end is what tells them.
            raise
        status, error = "failed", _described(failure)
    return Outcome(str(job.source), str(job.output), status, round(time.monotonic() - began, 3), error)


def _described(failure: Exception) -> str:
    if isinstance(failure, LCCError):
        return str(failure)
    if isinstance(failure, torch.OutOfMemoryError):
        return f"out of memory, see lcc compile --dry-run: {failure}"
    return f"{type(failure).__name__}: {failure}"
