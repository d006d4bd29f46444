"""The compiler ``gradmem``: a few gradient steps on the text write a memory. It asks for no data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from ...errors import InputError
from ...memory.payload import KVPayload
from ...modeling.prefill import prefill
from ...text.context import Context
from ...training.execution import autocast
from ...utils.hashing import file_digest
from ...utils.settings import AUTO, SettingsGroup
from ..base import BaseCompiler, Compiled, CompileTask
from ..learning import is_for
from ..registry import register
from .learned import FORMAT, Learned, writing_model
from .writing import Form, memory_kv

# What the writes are without anything learned: the form that keeps more, and its best step size (benchmarks/log).
FORM: Form = "kv"
WRITES, RATES = 8, {"kv": 1.0, "embeddings": 1.0}
STAGE = "writes"
# The package's own file, which was learned for the embedded model; and what leaves it out.
SHIPPED, NONE = Path(__file__).parent / "weights" / "embedded.safetensors", "none"


@dataclass(frozen=True)
class GradMemSettings(SettingsGroup):
    """Settings of the writes.

    Attributes:
        learned: a file of ``python -m lcc.compilers.meta_train``: the step sizes, and perhaps a start, a projection and
            a LoRA. ``auto``: the package's own file for the embedded model, nothing for any other.
            ``none``: nothing; the start is made of the text by the model as it is.
        learned_digest: SHA-256 of that file; found when it is left out. That of the package's own is in the memory's
            ``compiler``.
        form: what is written: ``embeddings`` (the paper) or ``kv`` (its appendix J). ``auto``: as learned, or ``kv``.
        writes: gradient steps. ``auto``: as many as were learned, or 8. Those beyond the learned ones go as far as the
            last of these.
        write_rate: the step size, where the loss is the text's mean. ``auto``: the learned ones, or 1.
    """

    learned: str = AUTO
    learned_digest: str | None = None
    form: Literal["auto", "embeddings", "kv"] = AUTO
    writes: int | Literal["auto"] = AUTO
    write_rate: float | Literal["auto"] = AUTO

    def check_ranges(self) -> None:
        """Refuse what is out of range, and a file that is missing or another one."""
        for name in ("writes", "write_rate"):
            if getattr(self, name) != AUTO:
                self.require_not_negative(name)
        if self.learned not in (AUTO, NONE):
            object.__setattr__(self, "learned_digest", file_digest(self.learned, self.learned_digest))


@register
class GradMemCompiler(BaseCompiler):
    """Writes the text into the memory with plain gradient steps on its own next-token loss; the model is frozen."""

    name = "gradmem"
    Settings = GradMemSettings

    def fingerprint(self) -> dict[str, str]:
        """The digest of the package's own file, whether the model is the one that it is used for or not."""
        return {"weights": file_digest(SHIPPED)}

    def compile(self, task: CompileTask) -> Compiled:
        """Write the task's text; the curve has its loss before each write.

        Raises:
            InputError: the learned start has fewer tokens than the memory, or another form than the one asked for.
            MemoryFileError, MismatchError: the learned file is damaged, or of another model.
        """
        model, context = task.model, task.context
        began = time.monotonic()
        learned = _learned(model, context, task.settings)
        rates = _rates(learned, task.settings)
        task.reporter.start(STAGE, len(rates))
        ids = torch.tensor([context.context_ids], device=model.device)
        counted = torch.ones_like(ids, dtype=torch.bool)
        curve = []
        with writing_model(model, learned.lora) as (applied, _), autocast(model, task.execution):
            with torch.no_grad():
                prefix = prefill(model, context.prefix_ids)
                memory = learned.memories(model, prefix, ids, counted, context.buffer, applied)
            for step, rate in enumerate(rates):
                written = learned.write(model, prefix, memory, ids, counted, [rate], applied=applied)
                memory, loss = written.memory, written.losses.item()
                curve.append({"step": step, "loss": loss, "held_out_kl": math.nan, "seconds": time.monotonic() - began})
                task.reporter.count(STAGE, step + 1, len(rates), f"loss {loss:.4f}")
            with torch.no_grad():
                kv = memory_kv(model, prefix, learned.used(memory))
        return Compiled(KVPayload(kv), tuple(curve))


def _learned(model: PreTrainedModel, context: Context, settings: GradMemSettings) -> Learned:
    form = FORM if settings.form == AUTO else settings.form
    own = settings.learned == AUTO and form == FORM and is_for(SHIPPED, FORMAT, model)
    path = SHIPPED if own else settings.learned
    if path in (AUTO, NONE):
        return Learned.of_rates(model, form, [RATES[form]] * WRITES)
    learned = Learned.load(path, model)
    if settings.form not in (AUTO, learned.form):
        raise InputError(f"{path} starts memories of the form {learned.form!r}: leave form out")
    if learned.tokens < context.buffer:
        raise InputError(
            f"{path} starts memories of {learned.tokens} tokens at most, and this one has {context.buffer}: "
            f"raise the ratio, or run meta_train with --tokens {context.buffer}"
        )
    return learned


def _rates(learned: Learned, settings: GradMemSettings) -> list[float]:
    """The step size of each write."""
    rates = learned.rates.tolist()
    count = len(rates) if settings.writes == AUTO else settings.writes
    if settings.write_rate != AUTO:
        return [settings.write_rate] * count
    return [*rates, *rates[-1:] * max(0, count - len(rates))][:count]
