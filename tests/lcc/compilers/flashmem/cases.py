"""Texts that a tiny model has read, in float64, and consolidators that are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lcc.compilers.flashmem.consolidator import FORMS, Consolidator, ReadText
from lcc.modeling.kv import KV
from lcc.modeling.prefill import prefill
from tests.support.tiny_models import tiny_model

PREFIX, IDS = [1, 4, 5], [7, 9, 30, 41, 8, 52, 11, 16, 33, 21, 44]


@dataclass
class Case:
    """A frozen model, its chat's prefix, and a text of 11 tokens behind it."""

    model: Any
    prefix: KV
    text: ReadText


def case(family: str = "llama", dtype: torch.dtype = torch.float64) -> Case:
    model = tiny_model(family, dtype).requires_grad_(False)
    with torch.no_grad():
        prefix = prefill(model, PREFIX)
    return Case(model, prefix, ReadText.of(model, prefix, IDS))


def consolidator(model: Any, form: str, trained: str = "all", moved: float = 0.1, rank: int = 2) -> Consolidator:
    """One in the model's dtype; ``moved`` is how far its weights are from the untrained ones."""
    torch.manual_seed(3)
    made = FORMS[form](model, rank, trained).to(model.dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    return made
