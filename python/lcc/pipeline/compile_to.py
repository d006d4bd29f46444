"""One text into one memory file: skipped if it is there, locked while it is made, gone on with after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MismatchError
from ..memory.file_format import READABLE
from ..memory.lineage import ancestor_digests
from ..memory.memory import Memory
from ..memory.store import Claim, FileStore, get_or_make
from ..modeling.fingerprint import differing, fingerprint
from ..utils.distributed import Ranks
from ..utils.hashing import text_digest
from ..utils.outputs import Output
from ..utils.progress import Reporter
from ..utils.tensor_files import ours
from .compile import make_memory
from .distractors import of_other_texts
from .options import CompileOptions, Run
from .ratio_search import require_target


def memory_output(path: Path, text: str, inputs: Iterable[Path] = (), force: bool = False) -> Output:
    """The file that the memory of ``text`` goes to: it replaces memories of the same text."""
    return Output(path, tuple(inputs), force, ours(*READABLE, source_sha256=text_digest(text)))


def compile_to(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    output: Output,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
) -> Literal["compiled", "skipped", "locked"]:
    """Compile ``text`` into ``output``, unless it is done or another process is at it.

    Args:
        text: redacted already.
        run: its checkpoint is beside ``output``, whatever it says.

    Returns:
        What became of it; see ``get_or_make``.

    Raises:
        MemoryFileError: ``output`` holds something else than a memory and is not to be forced, or cannot be written.
        MismatchError: the memory in ``output``, or the checkpoint beside it, differs in what was asked for.
        TargetError: no ratio meets the target. The memory that keeps most is in ``output`` all the same.
    """
    ranks = run.ranks
    # Of sharded weights all processes take the fingerprint together.
    digests = fingerprint(model, tokenizer)
    kept: list[Memory] = []

    def make(claim: Claim) -> Memory:
        here = replace(run, checkpoint=claim.checkpoint)
        # What is asked meanwhile gets the best memory so far.
        keep = partial(_replace, output, ranks)
        kept.append(make_memory(model, tokenizer, text, options, here, reporter, keep))
        return kept[0]

    def accepts(memory: Memory | None) -> bool:
        return is_wanted(memory, output, text, options, digests)

    store = FileStore(lambda key: output, ranks)
    status = get_or_make(store, str(output), make, accepts, ranks)
    for memory in kept:
        require_target(memory, f", which is in {output}")
    return status


def _replace(output: Output, ranks: Ranks, memory: Memory) -> None:
    ranks.from_main(lambda: memory.save(output))


def is_wanted(
    memory: Memory | None, output: Output, text: str, options: CompileOptions, digests: dict[str, str]
) -> bool:
    """Whether ``memory``, which ``output`` holds, is what compiling would give; if not, it may be replaced.

    Raises:
        MemoryFileError: there is something else than a memory, and it is not to be forced, or cannot be written.
        MismatchError: it is another memory, and not to be forced.
        TargetError: it is what compiling would give, a memory that misses the target.
    """
    if memory is not None:
        target = (memory.ratio_search or {"target": None})["target"]
        recorded = {
            "compiler": memory.compiler,
            "target": target,
            "budget": None,
            "lineage": ancestor_digests(memory.lineage),
            "max_bytes": memory.max_bytes,
            "growing": memory.update and memory.update["growing"],
        }
        stored = memory.budget["asked"] if memory.budget else memory.settings | recorded
        stored = stored | {"text": memory.source_sha256, "distractors": memory.distractors}
        digest = options.source_digest(text)
        wanted = {"text": digest, "distractors": list(of_other_texts(options.distractors, digest))}
        wanted |= json.loads(json.dumps(options.recorded))
        others = [name for name, value in wanted.items() if stored.get(name) != value]
        others += differing(memory.fingerprint, digests)
        if not others and memory.budget and not memory.budget["finished"]:
            output.check()
            return False
        if not others:
            require_target(memory, f", which is in {output}")
            return True
        if not output.force:
            raise MismatchError(
                f"{output} is there already and differs in {', '.join(others)}: compile it again with --force "
                "(force=True), or choose another name for the memory"
            )
    output.check()
    return False
