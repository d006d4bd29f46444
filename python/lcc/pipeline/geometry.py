"""How many samples a compilation has, and the lengths of those in one step, before any of them is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lcc_kernels as lk

from ..data.reconstruction import longest_repetition
from ..text.context import Context
from .settings import CompileSettings


@dataclass(frozen=True)
class Geometry:
    """The samples of one step: tokens of each, and how many tokens they supervise in all."""

    segments: tuple[int, ...]
    supervised: int


def geometry(
    context: Context,
    settings: CompileSettings,
    samples: int,
    query_tokens: int,
    response_tokens: int,
    more: int = 0,
    parts: int = 1,
) -> Geometry:
    """The samples of a step: the longest repetition, if it has weight, and a batch of queries of these mean lengths.

    Args:
        more: queries beyond the batch.
        parts: sections that a step has samples of, as many of each.
    """
    batch = step_queries(settings, samples) + more
    longest = longest_repetition(context, settings.data)
    repeats = bool(settings.training.reconstruction_weight)
    segments = (len(longest.input_ids),) * repeats + (query_tokens + response_tokens - 1,) * batch
    return Geometry(parts * segments, parts * (repeats * len(longest.response_ids) + batch * response_tokens))


def prefix_ids(context: Context, settings: CompileSettings) -> tuple[int, ...]:
    """What stands before the memory."""
    return context.prefix_ids if settings.training.keep_prefix else ()


def sample_count(settings: CompileSettings, queries: Sequence[str]) -> int:
    """Queries of all streams, if the model asks itself as many distinct questions as it should."""
    data = settings.effective_data
    return min(data.general_queries, len(set(queries))) + data.asked


def step_layout(context: Context, step: Geometry, settings: CompileSettings) -> lk.BottleneckLayout:
    """The packed row of one step."""
    lengths = len(context.prefix_ids), len(context.context_ids), context.buffer
    return lk.BottleneckLayout(*lengths, step.segments, settings.training.keep_prefix)


def step_queries(settings: CompileSettings, samples: int) -> int:
    """Queries of a step, at most, when the teacher has answered ``samples``."""
    return min(settings.training.samples, samples - int(samples * settings.data.held_out))
