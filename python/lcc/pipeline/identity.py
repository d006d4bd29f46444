"""What a compilation depends on, and what its distillation data depends on: only where it is equal is work reused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..compilers.base import Compiler
from ..text.context import Context
from ..utils.hashing import json_digest
from .settings import CompileSettings


@dataclass(frozen=True)
class Identity:
    """JSON-ready; ``data`` is the part that the distillation data depends on."""

    compilation: dict[str, Any]
    data: dict[str, Any]

    @classmethod
    def of(
        cls,
        settings: CompileSettings,
        compiler: Compiler,
        context: Context,
        fingerprint: dict[str, str],
        queries: Sequence[str],
    ) -> Identity:
        """The identity of compiling ``context``.

        Args:
            fingerprint: of the model and the tokenizer.
            queries: context-agnostic ones.
        """
        data = asdict(settings.effective_data) | {"seed": settings.seed, "precision": settings.execution.precision}
        data |= {"text": context.sha256, "queries": json_digest(list(queries))} | fingerprint
        chat = context.chat
        if chat.date is not None:
            # What the template writes on another day is another chat, and the tokenizer's fingerprint is the same.
            data |= {"chat": [chat.prefix, chat.ask, chat.next_turn]}
        learned = {f"compiler_{name}": digest for name, digest in compiler.fingerprint().items()}
        compilation = data | settings.flat() | {"compiler": compiler.name} | learned
        return cls(json.loads(json.dumps(compilation)), json.loads(json.dumps(data)))
