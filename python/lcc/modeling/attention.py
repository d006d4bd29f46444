"""Attention implementations of this package inside transformers' models: switching to one, and what none computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .kv import decoder

UNSUPPORTED = {"sliding_window": "a sliding window", "softcap": "soft-capped scores", "s_aux": "attention sinks"}


@contextmanager
def attending(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Let ``model`` attend with ``implementation`` inside the block."""
    before = model.config._attn_implementation
    model.config._attn_implementation = implementation
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def attending_with_state(
    model: PreTrainedModel, implementation: str, name: str, states: Iterable[object]
) -> Iterator[None]:
    """``attending``, and each layer's attention module has its state as the attribute ``name`` inside the block."""
    modules = [layer.self_attn for layer in decoder(model).layers]
    for module, state in zip(modules, states, strict=False):
        setattr(module, name, state)
    try:
        with attending(model, implementation):
            yield
    finally:
        for module in modules:
            delattr(module, name)


def refuse_variants(module: torch.nn.Module, name: str, options: Mapping[str, object], remedy: str) -> None:
    """Refuse what implementation ``name`` does not compute and ``module`` asks for in ``options``.

    Raises:
        ValueError: naming the module, the variant and the remedy.
    """
    for option, what in UNSUPPORTED.items():
        if options.get(option) is not None:
            raise ValueError(f"{type(module).__name__} uses {what}, which {name} does not compute: {remedy}")
