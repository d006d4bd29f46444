"""Distillation data without a cache, a progress bar or a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from lcc.data.samples import DistillationData
from lcc.data.synthesis import synthesize
from lcc.data.teacher_states import TeacherStates
from lcc.modeling.kv import KV
from lcc.pipeline.settings import CompileSettings
from lcc.text.context import Context


def synthetic_data(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings, queries: Sequence[str]
) -> DistillationData:
    """The data that ``settings`` ask for; draws from torch's random state as it is.

    Args:
        text_kv: K and V (rotated) of the chat's prefix and the text.
        queries: context-agnostic ones.
    """
    states = TeacherStates(settings.execution.teacher_bytes)
    return synthesize(model, context, text_kv, settings.effective_data, queries, settings.seed, lambda *_: None, states)
