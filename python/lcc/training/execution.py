"""The precision that a compilation's passes run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..pipeline.settings import CompileSettings


def autocast(model: PreTrainedModel, settings: CompileSettings) -> AbstractContextManager:
    """bfloat16 where asked for, or where the device has it in hardware."""
    device = model.device.type
    # torch cannot cast float16 weights to bfloat16 wherever autocast wants to.
    half = model.dtype == torch.float16
    if half and settings.precision == "bfloat16":
        raise InputError("precision is bfloat16 but the model is float16: leave precision out, or load it in bfloat16")
    wanted = settings.precision == "bfloat16" or (
        settings.precision == "auto" and not half and device == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device, torch.bfloat16) if wanted else nullcontext()
