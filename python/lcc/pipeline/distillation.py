"""The distillation data of one text: found where an earlier run left it, or made now."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from ..data.cache import DataCache, pack, unpack
from ..data.parts import Parts
from ..data.samples import DistillationData
from ..data.synthesis import synthesize
from ..data.teacher_states import TeacherStates
from ..modeling.model_copy import with_body_in
from ..modeling.prefill import prefill
from ..modeling.sharding import is_sharded
from ..text.context import Context
from ..training.execution import in_bfloat16
from ..utils.distributed import ALONE, Ranks
from ..utils.progress import Reporter
from ..utils.random_state import seeded
from .settings import CompileSettings


class DataOnDemand:
    """The distillation data of a compilation: made at the first call, and remembered.

    Attributes:
        made: the data; None as long as nobody has asked for it.
    """

    def __init__(self, make: Callable[[], DistillationData]):
        self._make = make
        self.made: DistillationData | None = None

    def __call__(self) -> DistillationData:
        """The data."""
        if self.made is None:
            self.made = self._make()
        return self.made


# What makes the data: of the teacher's model, and what keeps its states and what it writes.
Make = Callable[[PreTrainedModel, TeacherStates, Parts | None], DistillationData]


def distillation_data(
    model: PreTrainedModel,
    context: Context,
    settings: CompileSettings,
    queries: Sequence[str] | str,
    cache: DataCache | None,
    reporter: Reporter,
    ranks: Ranks = ALONE,
    wider: Context | None = None,
) -> DistillationData:
    """The data that a text is compiled with: from ``cache``, or made now by rank 0 and kept there.

    Args:
        model: frozen, no adapter active.
        queries: context-agnostic ones; or ``SELF``.
        wider: the text joined with another section; see ``Teacher``.
    """

    def make(teacher: PreTrainedModel, states: TeacherStates, parts: Parts | None) -> DistillationData:
        prefix = context.read_prefix(teacher)
        text_kv = prefill(teacher, context.context_ids, prefix)
        wider_kv = prefill(teacher, wider.context_ids, prefix) if wider else None
        asked, seed = settings.effective_data, settings.seed
        return synthesize(teacher, context, text_kv, asked, queries, seed, reporter.count, states, parts, wider_kv)

    return kept_or_made(model, settings, cache, ranks, make)


def kept_or_made(
    model: PreTrainedModel,
    settings: CompileSettings,
    cache: DataCache | None,
    ranks: Ranks,
    make_data: Make,
    repeats: bool = True,
) -> DistillationData:
    """Data from ``cache``, or what ``make_data`` makes now on rank 0, which is kept there.

    Args:
        repeats: see ``DataCache.load``.
    """
    budget = settings.execution.teacher_bytes
    stored = cache.load(model.device, budget, repeats) if cache else None
    if stored is not None:
        return stored

    def make() -> DistillationData:
        # Seeded anew, so that the data is the same whatever has been drawn before.
        with torch.no_grad(), seeded(model.device, settings.seed):
            states = TeacherStates(budget, cache.folder if cache else None)
            parts = cache.parts if cache and not is_sharded(model) else None
            data = make_data(teacher_model(model, settings), states, parts)
        if cache:
            cache.save(data)
        return data

    if ranks.count == 1:
        return make()
    packed = ranks.from_main(lambda: pack(make()), together=is_sharded(model))
    return unpack(*packed, model.device, budget)


def teacher_model(model: PreTrainedModel, settings: CompileSettings) -> PreTrainedModel:
    """The model that writes the data: on a CPU in bfloat16, if it runs in that, with the head as it is."""
    if model.device.type == "cpu" and model.dtype == torch.float32 and in_bfloat16(model, settings.execution):
        return with_body_in(model, torch.bfloat16)
    return model
