"""What a compilation depends on, and what its distillation data depends on: only where it is equal is work reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..compilers.base import Compiler
from ..compilers.registry import record
from ..errors import MismatchError
from ..text.context import Context
from ..training.checkpoint import DIVERGED
from ..utils.hashing import json_digest
from ..utils.resumable import DATA_FILE, IDENTITY, PART, START_AFRESH, STATE_FILE, differing_names, other_run
from ..utils.tensor_files import load_metadata
from .settings import CompileSettings


@dataclass(frozen=True)
class Identity:
    """JSON-ready; ``data`` is the part that the distillation data depends on.

    Attributes:
        fingerprint: of the model and the tokenizer.
    """

    compilation: dict[str, Any]
    data: dict[str, Any]
    fingerprint: dict[str, str]

    @classmethod
    def of(
        cls,
        settings: CompileSettings,
        compiler: Compiler,
        context: Context,
        fingerprint: dict[str, str],
        queries: Sequence[str] | str,
        lineage: Sequence[str] = (),
        distractors: Sequence[str] = (),
    ) -> Identity:
        """The identity of compiling ``context``.

        Args:
            fingerprint: of the model and the tokenizer.
            queries: context-agnostic ones; or ``SELF``.
            lineage: digests of the memories that it goes on from.
            distractors: digests of the memories that it is trained among.
        """
        data = asdict(settings.effective_data) | {"seed": settings.seed, "precision": settings.execution.precision}
        data |= {"text": context.sha256, "queries": json_digest(queries)} | fingerprint
        if context.past is not None:
            data |= {"past": [context.past.digest, json_digest(context.past.questions)]}
        chat = context.chat
        if chat.date is not None:
            # What the template writes on another day is another chat, and the tokenizer's fingerprint is the same.
            data |= {"chat": [chat.prefix, chat.ask, chat.next_turn]}
        compilation = data | settings.flat() | {"compiler": record(compiler), "lineage": list(lineage)}
        compilation |= {"distractors": list(distractors)}
        if context.past is not None:
            compilation |= {"growing": context.past.growing}
        return cls(json.loads(json.dumps(compilation)), json.loads(json.dumps(data)), fingerprint)


def require_own(folder: Path, identity: Identity) -> None:
    """Refuse a checkpoint folder that another compilation left, whatever the compiler reads of it.

    Raises:
        MismatchError: naming what differs, or that a search for a ratio is unfinished there.
    """
    if any(IDENTITY in load_metadata(file) for file in folder.glob(f"{PART}*/*.safetensors")):
        raise MismatchError(
            f"{folder} holds an unfinished search for a ratio: finish it with what it was started with, delete this "
            "folder, or add --force (restart=True)"
        )
    for name, wanted in ((STATE_FILE, identity.compilation), (DATA_FILE, identity.data)):
        metadata = load_metadata(folder / f"{name}.safetensors")
        stored = metadata.get(IDENTITY)
        passed_over = name == STATE_FILE and metadata.get(DIVERGED) and metadata.get("data") == identity.data
        if isinstance(stored, dict) and not passed_over and (differing := differing_names(stored, wanted)):
            raise MismatchError(f"{other_run(folder, differing)}; {START_AFRESH}")
