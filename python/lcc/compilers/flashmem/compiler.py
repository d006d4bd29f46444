"""The compiler ``flashmem``: a module that was trained once writes a memory in one pass over the text. No data is made.

That a memory is compiled is this package's adaptation: the paper appends latents to a cache, and evicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ...errors import InputError
from ...memory.payload import KVPayload
from ...modeling.lora import frozen
from ...modeling.prefill import prefill
from ...training.execution import autocast
from ...utils.hashing import file_digest
from ...utils.settings import AUTO, SettingsGroup
from ..base import BaseCompiler, Compiled, CompileTask
from ..registry import register
from .consolidator import Consolidator, Form, ReadText
from .learned import load, load_shipped, shipped_digests

DEFAULT_FORM: Form = "per_layer"


@dataclass(frozen=True)
class FlashMemSettings(SettingsGroup):
    """Settings of the consolidator.

    Attributes:
        consolidator: ``per_layer``, or ``last`` (the paper's). ``auto``: the one in ``learned``, or ``per_layer``.
        learned: a file of ``python -m lcc.compilers.flashmem.train``. None: the shipped weights, which are the embedded
            model's.
        learned_digest: SHA-256 of that file; found when it is left out.
    """

    consolidator: Literal["auto", "per_layer", "last"] = AUTO
    learned: str | None = None
    learned_digest: str | None = None

    def check_ranges(self) -> None:
        """Refuse a file that is missing or another one."""
        if self.learned is not None:
            object.__setattr__(self, "learned_digest", file_digest(self.learned, self.learned_digest))


@register
class FlashMemCompiler(BaseCompiler):
    """The frozen model reads the text; a trained consolidator writes latents; their own K and V stay."""

    name = "flashmem"
    Settings = FlashMemSettings

    def fingerprint(self) -> dict[str, str]:
        """Digests of the shipped consolidators; that of a file of the caller's is a setting."""
        return {f"shipped_{form}": digest for form, digest in shipped_digests().items()}

    @torch.no_grad()
    def compile(self, task: CompileTask) -> Compiled:
        """Write the memory.

        Raises:
            InputError: the learned file has another consolidator than the one asked for.
            MemoryFileError, MismatchError: the learned file is damaged or of another model, or no file is named and
                none is shipped for the model.
        """
        model, context = task.model, task.context
        consolidator = _consolidator(task)
        with frozen(model), autocast(model, task.execution):
            text = ReadText.of(model, prefill(model, context.prefix_ids), context.context_ids)
            return Compiled(KVPayload(consolidator.write(model, text, context.buffer)))


def _consolidator(task: CompileTask) -> Consolidator:
    settings: FlashMemSettings = task.settings
    if settings.learned is None:
        return load_shipped(DEFAULT_FORM if settings.consolidator == AUTO else settings.consolidator, task.model)
    consolidator = load(settings.learned, task.model)
    if settings.consolidator not in (AUTO, consolidator.form):
        raise InputError(f"{settings.learned} holds the consolidator {consolidator.form!r}: leave consolidator out")
    return consolidator
