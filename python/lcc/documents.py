"""Many documents into a folder of memories: what is done is skipped, what was killed goes on, what fails is reported.

The folder is the queue's only state, so any number of processes may work on it: each document is locked while it is
compiled, and the operating system drops the lock of a process that dies.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .auto_ratio import TARGET, missed_target
from .checkpoint import remove_checkpoint
from .compile import compile, reread
from .context import text_digest
from .distributed import ALONE, Ranks
from .errors import InputError, LCCError, MemoryFileError, MismatchError, TargetError
from .files import remove_partial
from .fingerprint import fingerprint
from .memory import Memory
from .progress import Reporter, reporting
from .settings import AUTO, make_settings

SUFFIX = ".lcc.safetensors"
# Options of ``lcc.compile`` that no memory records: they do not tell whether one is the one that is asked for.
UNRECORDED = ("queries", "questions", "certify", "surrogates", "checkpoint_every")


@dataclass(frozen=True)
class Job:
    """A document and the memory file that it becomes."""

    source: Path
    output: Path


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
        force: compile again what is there but differs.
        distributed: see ``lcc.compile``; the processes work on each document together.
        **options: those of ``lcc.compile``; of the questions each document gets those whose context it is, and those
            without a context.

    Returns:
        One outcome a document, in their order.

    Raises:
        InputError: no documents, two that would become the same file, or a setting that cannot be used.
        MemoryFileError: the folder cannot be made.
    """
    jobs = make_jobs(sources, folder)
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


def make_jobs(sources: Iterable[str | Path], folder: str | Path) -> list[Job]:
    """The documents with their files in ``folder``, which is made if it is missing.

    Raises:
        InputError: no documents, or two that would become the same file.
        MemoryFileError: the folder cannot be made.
    """
    folder = Path(folder)
    jobs: dict[Path, Job] = {}
    for source in map(Path, sources):
        output = folder / (source.stem + SUFFIX)
        if output in jobs:
            raise InputError(f"{jobs[output].source} and {source} would both become {output}: rename one")
        jobs[output] = Job(source, output)
    if not jobs:
        raise InputError("there are no documents to compile")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MemoryFileError(f"cannot make the folder {folder}: {error.strerror}") from error
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
    wanted = _Wanted.of(**options)
    ranks = Ranks.of_group() if distributed else ALONE
    began = time.monotonic()
    status, error = "compiled", None
    try:
        # Of sharded weights all processes take the fingerprint together.
        print_of = fingerprint(model, tokenizer)
        with claimed(job.output, ranks) as mine:
            text = ranks.from_main(lambda: read_document(job.source))
            if not mine:
                status = "elsewhere"
            elif ranks.from_main(lambda: _is_done(job.output, text, wanted, print_of, force)):
                status = "skipped"
            else:
                compile_file(model, tokenizer, text, job.output, distributed=distributed, progress=progress, **options)
    except LCCError as failure:
        status, error = "failed", str(failure)
    except torch.OutOfMemoryError as failure:
        if ranks.count > 1:
            # The other processes wait for this one: its end is what tells them.
            raise
        status, error = "failed", f"out of memory, see lcc compile --dry-run: {failure}"
    return Outcome(str(job.source), str(job.output), status, round(time.monotonic() - began, 3), error)


def compile_file(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    output: Path,
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


def checkpoint_folder(output: Path) -> Path:
    """Where a compilation into ``output`` keeps its state."""
    return output.with_name(output.name + ".checkpoint")


@contextmanager
def claimed(output: Path, ranks: Ranks) -> Iterator[bool]:
    """Whether ``output`` is these ranks' to write inside the block, or another process has claimed it.

    Raises:
        MemoryFileError: the folder is missing or read-only.
    """
    lock = FileLock(output.with_name(output.name + ".lock"))
    mine = ranks.from_main(lambda: _acquire(lock))
    try:
        yield mine
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _acquire(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except OSError as error:
        raise MemoryFileError(f"cannot write {lock.lock_file}: {error.strerror}") from error
    return True


def read_document(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: no such file, or not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


@dataclass(frozen=True)
class _Wanted:
    """What a memory must have been compiled with: its settings, and for ``ratio="auto"`` the target."""

    settings: dict[str, Any]
    target: float | None

    @classmethod
    def of(cls, recipe: str = "default", target: float | None = None, **options: Any) -> _Wanted:
        """As ``lcc.compile`` reads its options.

        Raises:
            InputError: a setting that cannot be used.
        """
        settings = {name: value for name, value in options.items() if name not in UNRECORDED}
        searched = settings.get("ratio") == AUTO
        chosen = asdict(make_settings(recipe, **settings | ({"ratio": None} if searched else {})))
        if not searched:
            return cls(chosen, None)
        del chosen["ratio"]
        return cls(chosen, TARGET if target is None else target)


def _is_done(output: Path, text: str, wanted: _Wanted, print_of: dict[str, str], force: bool) -> bool:
    """Whether ``output`` holds what compiling would give.

    Raises:
        MismatchError: it holds something else, and ``force`` is not set.
        TargetError: compiling would give what it holds, a memory that misses the target.
    """
    if not output.exists():
        return False
    try:
        memory = Memory.load(output)
    except MemoryFileError:
        if force:
            return False
        raise
    search = memory.ratio_search or {"target": None, "met": True}
    found = {"text": memory.source_sha256, "target": search["target"]} | memory.settings | memory.fingerprint
    expected = {"text": text_digest(text), "target": wanted.target}
    expected |= json.loads(json.dumps(wanted.settings)) | print_of
    differing = [name for name, value in expected.items() if found.get(name) != value]
    if differing and not force:
        raise MismatchError(
            f"{output} is there already and differs in {', '.join(differing)}: compile it again with --force "
            "(force=True), or choose another folder"
        )
    if not differing and not search["met"]:
        raise TargetError(f"{missed_target(memory)}, which is in {output}", memory)
    return not differing
