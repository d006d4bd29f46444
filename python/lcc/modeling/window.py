"""How far a model reads: every token that is put before it or appended must stand in its window, on one rope."""

from __future__ import annotations

import math

from transformers import PreTrainedModel

from ..errors import InputError
from .kv import check_one_rope


def window_of(model: PreTrainedModel) -> float:
    """Positions that the model has; infinity where its config names no limit."""
    window = getattr(model.config, "max_position_embeddings", None)
    return math.inf if window is None else window


def check_window(model: PreTrainedModel, end: int, what: str, remedy: str, start: int = 0) -> None:
    """Refuse tokens at the positions ``start`` to ``end`` - 1 where the model does not have them all.

    Args:
        what: stands there, and ``remedy``: what to do if that is too much. Both go into the message.

    Raises:
        InputError: a position is negative or beyond the window, or the rope changes between two of them.
    """
    if start < 0:
        raise InputError(f"{what} would stand at position {start}: positions begin at 0")
    if end > window_of(model):
        raise InputError(f"{what} need a window of {end} tokens, and the model's has {window_of(model)}: {remedy}")
    check_one_rope(model, start, end)
