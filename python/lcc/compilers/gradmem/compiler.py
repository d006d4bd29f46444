"""The compiler ``gradmem``: a few gradient steps on the text write a memory. It asks for no data."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from ...errors import InputError
from ...memory.payload import KVPayload
from ...modeling.kv import KV
from ...modeling.prefill import prefill
from ...text.context import Context
from ...training.execution import autocast
from ...utils.hashing import file_digest
from ...utils.settings import AUTO, SettingsGroup
from ..base import BaseCompiler, Compiled, CompileTask
from ..registry import register
from .learned import Learned, writing_model
from .writing import Form, memory_kv, write

# What the writes are without a learned start: the form that keeps more, and its best step size (benchmarks/log).
FORM: Form = "kv"
WRITES, RATES = 8, {"kv": 1.0, "embeddings": 1.0}
STAGE = "writes"


@dataclass(frozen=True)
class GradMemSettings(SettingsGroup):
    """Settings of the writes.

    Attributes:
        learned: a file of ``python -m lcc.compilers.meta_train``: the start, the step sizes, and perhaps a projection
            and a LoRA of the writes. None: the start is made of the text, as ``Learned.of_text`` does.
        learned_digest: SHA-256 of that file; found when it is left out.
        form: what is written: ``embeddings`` (the paper) or ``kv`` (its appendix J). ``auto``: as learned, or ``kv``.
        writes: gradient steps. ``auto``: as many as were learned, or 8. Those beyond the learned ones go as far as the
            last of these.
        write_rate: the step size, where the loss is the text's mean. ``auto``: the learned ones, or 1.
    """

    learned: str | None = None
    learned_digest: str | None = None
    form: Literal["auto", "embeddings", "kv"] = AUTO
    writes: int | Literal["auto"] = AUTO
    write_rate: float | Literal["auto"] = AUTO

    def check_ranges(self) -> None:
        """Refuse what is out of range, and a file that is missing or another one."""
        for name in ("writes", "write_rate"):
            if getattr(self, name) != AUTO:
                self.require_not_negative(name)
        if self.learned is not None:
            object.__setattr__(self, "learned_digest", file_digest(self.learned, self.learned_digest))


@register
class GradMemCompiler(BaseCompiler):
    """Writes the text into the memory with plain gradient steps on its own next-token loss; the model is frozen."""

    name = "gradmem"
    Settings = GradMemSettings

    def compile(self, task: CompileTask) -> Compiled:
        """Write the task's text; the curve has its loss before each write.

        Raises:
            InputError: the learned start has fewer tokens than the memory, or another form than the one asked for.
            MemoryFileError, MismatchError: the learned file is damaged, or of another model.
        """
        model, context = task.model, task.context
        began = time.monotonic()
        with torch.no_grad():
            prefix = prefill(model, context.prefix_ids)
            learned = _start(model, context, prefix, task.settings)
        rates = _rates(learned, task.settings)
        task.reporter.start(STAGE, len(rates))
        ids = torch.tensor([context.context_ids], device=model.device)
        counted = torch.ones_like(ids, dtype=torch.bool)
        memory = learned.memories(1, context.buffer)
        curve = []
        with writing_model(model, learned.lora) as (applied, _), autocast(model, task.execution):
            for step, rate in enumerate(rates):
                written = write(model, prefix, memory, ids, counted, [rate], "none", learned.used, applied)
                memory, loss = written.memory, written.losses.item()
                curve.append({"step": step, "loss": loss, "held_out_kl": math.nan, "seconds": time.monotonic() - began})
                task.reporter.count(STAGE, step + 1, len(rates), f"loss {loss:.4f}")
            with torch.no_grad():
                kv = memory_kv(model, prefix, learned.used(memory))
        return Compiled(KVPayload(kv), tuple(curve))


def _start(model: PreTrainedModel, context: Context, prefix: KV, settings: GradMemSettings) -> Learned:
    if settings.learned is None:
        form = FORM if settings.form == AUTO else settings.form
        rates = [RATES[form]] * WRITES
        return Learned.of_text(model, prefix, context.context_ids, context.buffer, form, rates)
    learned = Learned.load(settings.learned, model)
    if settings.form not in (AUTO, learned.form):
        raise InputError(f"{settings.learned} starts memories of the form {learned.form!r}: leave form out")
    if learned.tokens < context.buffer:
        raise InputError(
            f"{settings.learned} starts memories of {learned.tokens} tokens at most, and this one has "
            f"{context.buffer}: raise the ratio, or run meta_train with --tokens {context.buffer}"
        )
    return learned


def _rates(learned: Learned, settings: GradMemSettings) -> list[float]:
    """The step size of each write."""
    rates = learned.rates.tolist()
    count = len(rates) if settings.writes == AUTO else settings.writes
    if settings.write_rate != AUTO:
        return [settings.write_rate] * count
    return [*rates, *rates[-1:] * max(0, count - len(rates))][:count]
