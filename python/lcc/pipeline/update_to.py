"""One update into one memory file: skipped if it is done, locked while it is made, gone on with after a kill."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MemoryFileError
from ..memory.delta import Delta
from ..memory.file_format import READABLE
from ..memory.memory import Memory
from ..memory.store import Claim, FileStore, get_or_make
from ..modeling.fingerprint import fingerprint
from ..utils.hashing import text_digest
from ..utils.outputs import Output, is_file
from ..utils.progress import Reporter
from ..utils.tensor_files import ours
from .compile import make_memory
from .compile_to import is_wanted
from .options import CompileOptions, Run


def update_output(
    path: Path, source: Path, text: str, options: CompileOptions, inputs: Iterable[Path] = (), force: bool = False
) -> Output:
    """The file that an update goes to: it replaces memories of the same texts, and with ``force`` also ``source``.

    Args:
        source: the file of the memory that is updated.
        inputs: other files that are read.
    """
    read = tuple(inputs) if force else (source, *inputs)
    return Output(path, read, force, ours(*READABLE, source_sha256=options.source_digest(text)))


def update_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    text: str,
    output: Output,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
    delta: Output | None = None,
) -> Literal["compiled", "skipped", "locked"]:
    """Write the memory of ``source`` that takes ``text`` in, unless it is done or another process is at it.

    Args:
        source: the file of the options' parent. Where ``output`` is the same file, a memory that took this text in last
            is left as it is.
        run: its checkpoint is beside ``output``, whatever it says.
        delta: where to write what turns the old memory into the new one; it is there before the old one is replaced.

    Returns:
        What became of it; see ``get_or_make``.

    Raises:
        MemoryFileError: ``output`` holds something else than a memory and is not to be forced, cannot be written, or
            was replaced while the update was asked for; or the delta is missing, and the old memory is gone.
        MismatchError: the memory in ``output``, or the checkpoint beside it, differs in what was asked for.
    """
    digests = fingerprint(model, tokenizer)
    parent = options.parent
    assert parent is not None
    in_place = os.path.realpath(source) == os.path.realpath(output)

    def make(claim: Claim) -> Memory:
        made = make_memory(model, tokenizer, text, options, replace(run, checkpoint=claim.checkpoint), reporter)
        if delta is not None:
            Delta.between(parent.memory, made).save(delta)
        return made

    def accepts(memory: Memory | None) -> bool:
        if not in_place:
            return is_wanted(memory, output, text, options, digests)
        if memory is None or memory.digest != parent.memory.digest:
            raise MemoryFileError(f"{output} was replaced meanwhile: run the command again")
        return memory.update is not None and memory.update["text_sha256"] == text_digest(text)

    status = get_or_make(FileStore(lambda key: output), str(output), make, accepts)
    if status == "skipped" and delta is not None:
        _ship(delta, None if in_place else parent.memory, Memory.load(output))
    return status


def _ship(delta: Output, old: Memory | None, new: Memory) -> None:
    """Write the delta of a memory that was there already, unless that is there too.

    Args:
        old: None: the new memory stands in its place.

    Raises:
        MemoryFileError: there is neither the old memory nor the delta, or the delta cannot be written.
    """
    if old is not None:
        Delta.between(old, new).save(delta)
    elif not (is_file(delta.path) and Delta.load(delta).makes(new)):
        raise MemoryFileError(
            f"{delta} does not hold the delta of this update, and the old memory is gone: send the new memory itself"
        )
