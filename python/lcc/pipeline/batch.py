"""Many documents into a folder of memories: what is done is skipped, what was killed goes on, what fails is reported.

The folder is the queue's only state, so any number of processes may work on it: each document is locked while it is
compiled, and the operating system drops the lock of a process that dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, LCCError, MemoryFileError, TargetError
from ..memory.memory import Memory
from ..modeling.fingerprint import fingerprint
from ..text.queries import reread
from ..training.checkpoint import remove_checkpoint
from ..utils.distributed import ALONE, Ranks
from ..utils.outputs import MEMORY_SUFFIX, Output, check_folder, input_paths, make_folder, os_errors, remove_partial
from ..utils.progress import Reporter, reporting
from ..utils.utf8 import read_file
from .compile import compile
from .finished import Wanted, is_done, memory_output

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
        status: ``compiled``; ``skipped``, its memory was there; ``elsewhere``, another process is at it; ``failed``.
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
    progress: bool = True,
    distributed: bool = False,
    **options: Any,
) -> list[Outcome]:
    """Compile UTF-8 text files into ``folder``, one memory each; an error in one does not stop the rest.

    A memory that is there is skipped if its text, settings, target and model are those asked for. Queries and questions
    are not recorded in a memory: delete the memories after changing them.

    Args:
        force: compile again what is there but differs, and replace files that are no memories.
        distributed: see ``lcc.compile``; the processes work on each document together.
        **options: those of ``lcc.compile``; of the questions each document gets those whose context it is, and those
            without a context.

    Returns:
        One outcome a document, in their order.

    Raises:
        InputError: no documents, two that would become the same file, or a setting that cannot be used.
        MemoryFileError: the folder cannot be made.
    """
    jobs = make_jobs(sources, folder, options)
    ranks = Ranks.of_group() if distributed else ALONE
    outcomes, options = [], reread(options)
    with reporting(ranks.main and progress) as reporter:
        for done, job in enumerate(jobs):
            reporter.document(job.source.name, done, len(jobs))
            outcomes.append(
                compile_job(model, tokenizer, job, force=force, progress=reporter, distributed=distributed, **options)
            )
        reporter.document("", len(jobs), len(jobs))
    return outcomes


def make_jobs(sources: Iterable[str | Path], folder: str | Path, options: Mapping[str, Any]) -> list[Job]:
    """The documents with their files in ``folder``, which is made if it is missing.

    Args:
        options: those of ``compile_documents``.

    Raises:
        InputError: no documents, or two that would become the same file.
        MemoryFileError: the folder is a link, or cannot be made.
    """
    folder, paths = Path(folder), list(map(Path, sources))
    inputs = input_paths(*paths, options.get("queries"), options.get("questions"))
    jobs: dict[Path, Job] = {}
    for source in paths:
        output = folder / (source.stem + SUFFIX)
        if output in jobs:
            raise InputError(f"{jobs[output].source} and {source} would both become {output}: rename one")
        jobs[output] = Job(source, output, inputs)
    if not jobs:
        raise InputError("there are no documents to compile")
    make_folder(folder)
    return list(jobs.values())


def compile_job(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    *,
    force: bool = False,
    distributed: bool = False,
    progress: bool | Reporter = True,
    **options: Any,
) -> Outcome:
    """Compile one document, unless it is done or another process is at it; errors become the outcome.

    Args:
        **options: as in ``compile_documents``.

    Raises:
        InputError: a setting that cannot be used, for any document.
    """
    # A setting that cannot be used is no document's fault.
    Wanted.of(**options)
    ranks = Ranks.of_group() if distributed else ALONE
    began = time.monotonic()
    error = None
    try:
        text = ranks.from_main(lambda: read_file(job.source))
        output = memory_output(job.output, text, job.inputs, force)
        status = compile_to(model, tokenizer, text, output, distributed=distributed, progress=progress, **options)
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


def compile_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    output: Output,
    *,
    distributed: bool = False,
    progress: bool | Reporter = True,
    **options: Any,
) -> str:
    """Compile ``text`` into ``output``, unless it is done or another process is at it.

    Returns:
        ``compiled``, ``skipped`` or ``elsewhere``, as in ``Outcome``.

    Raises:
        MismatchError: the memory in ``output``, or the checkpoint beside it, differs in what was asked for.
        TargetError: as ``lcc.compile`` does; the memory that keeps most is in ``output`` all the same.
    """
    wanted = Wanted.of(**options)
    ranks = Ranks.of_group() if distributed else ALONE
    # Of sharded weights all processes take the fingerprint together.
    print_of = fingerprint(model, tokenizer)
    with claimed(output, ranks) as mine:
        if not mine:
            return "elsewhere"
        if ranks.from_main(lambda: is_done(output, text, wanted, print_of)):
            return "skipped"
        options |= {"distributed": distributed, "progress": progress, "restart": output.force}
        compile_file(model, tokenizer, text, output, **options)
    return "compiled"


def compile_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    output: str | os.PathLike,
    distributed: bool = False,
    **options: Any,
) -> Memory:
    """Compile ``text`` into the file ``output``, going on from the checkpoint beside it; see ``lcc.compile``.

    Raises:
        TargetError: as ``lcc.compile`` does; the memory that keeps most is in ``output`` all the same.
    """
    checkpoint = checkpoint_folder(output)
    missed: TargetError | None = None
    try:
        memory = compile(
            model, tokenizer, text, checkpoint=checkpoint, keep_checkpoint=True, distributed=distributed, **options
        )
    except TargetError as error:
        missed, memory = error, error.memory

    def keep() -> None:
        memory.save(output)
        remove_checkpoint(checkpoint)
        remove_partial(output)

    (Ranks.of_group() if distributed else ALONE).from_main(keep)
    if missed:
        raise TargetError(f"{missed}, which is in {output}", memory)
    return memory


def checkpoint_folder(output: str | os.PathLike) -> Path:
    """Where a compilation into ``output`` keeps its state."""
    return _beside(output, ".checkpoint")


def _beside(output: str | os.PathLike, suffix: str) -> Path:
    return Path(os.fspath(output) + suffix)


@contextmanager
def claimed(output: str | os.PathLike, ranks: Ranks) -> Iterator[bool]:
    """Whether ``output`` is these ranks' to write inside the block, or another process has claimed it.

    Raises:
        MemoryFileError: the folder is missing or read-only, or something else is where the lock or the checkpoint goes.
    """
    remedy = "move it away, or name another memory file"
    file = replace(Output.of(output), path=_beside(output, ".lock"), force=False, ours=_empty, remedy=remedy)
    lock = FileLock(file)

    def acquire() -> bool:
        file.check()
        check_folder(checkpoint_folder(output))
        with os_errors(f"cannot write {file}"):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return False
        return True

    mine = ranks.from_main(acquire)
    try:
        yield mine
    finally:
        if lock.is_locked:
            with os_errors(f"cannot remove {file}"):
                file.path.unlink(missing_ok=True)
                lock.release()


def _empty(path: Path) -> None:
    """The rule of a lock, which is an empty file."""
    if path.stat().st_size:
        raise MemoryFileError(f"{path} has the name of a lock and is none")
