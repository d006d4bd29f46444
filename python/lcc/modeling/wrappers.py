"""What may stand around a model without changing what it computes: torch.compile, DDP, peft with its adapters off."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel

from ..errors import InputError

# What torch.compile and checkpoint wrappers call the module inside, and what DDP and its like call the model.
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module")
MODEL_INSIDE = "module"
FSDP1 = "FullyShardedDataParallel"
ACTIVE = (
    "the model carries an active adapter, and a memory belongs to the plain model: switch the adapter off (with "
    "model.disable_adapter()), unload it, or merge it into the weights for good (model.merge_and_unload())"
)


class AdapterHook(partial):
    """The forward hook of a layer under an adapter: as a LoRA of peft's, it changes no verdict on the model."""


def plain_model(model: torch.nn.Module) -> PreTrainedModel:
    """The model inside torch.compile's, DDP's and peft's wrappers; a plain one as it is.

    Raises:
        InputError: an adapter in it is active; FSDP of version 1; no transformers model inside.
    """
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if type(inner).__name__ == FSDP1:
            raise InputError(f"{FSDP1} flattens the weights: shard the model with FSDP2 (fully_shard)")
        if isinstance(inner, PeftModel) and _prompts(inner):
            raise InputError(ACTIVE)
        inside = _inside(inner) if isinstance(inner, torch.nn.Module) else None
        inner = inside or getattr(inner, MODEL_INSIDE, None)
        if inner is None:
            raise InputError(f"the model is a {type(model).__name__}: give a transformers model, or a wrapper of one")
    if any(map(_adapts, inner.modules())):
        raise InputError(ACTIVE)
    return inner


def plain_modules(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module with what stands before its tensors' names in the plain model; no wrappers and no adapters."""
    while (inner := _inside(module)) is not None:
        module = inner
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from plain_modules(child, f"{prefix}{name}.")


def _inside(module: torch.nn.Module) -> torch.nn.Module | None:
    """What ``module`` wraps; None if it is no wrapper."""
    if isinstance(module, PeftModel):
        return module.get_base_model()
    if isinstance(module, BaseTunerLayer):
        return module.get_base_layer()
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return next((module._modules[name] for name in INSIDE if name in module._modules), None)


def _prompts(model: PeftModel) -> bool:
    """Whether tokens that peft learned are put before every input."""
    config = model.active_peft_config
    return (config.is_prompt_learning or config.is_adaption_prompt) and not model._adapters_disabled


def _adapts(module: torch.nn.Module) -> bool:
    """Whether it holds an adapter that counts; one that is merged and switched off is unmerged by the next forward."""
    if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        return False
    return not module.disable_adapters or bool(module.merged_adapters)
