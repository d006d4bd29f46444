"""A model's weights one by one, whole, as they were loaded: wherever they are kept, however they are packed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..errors import InputError
from .wrappers import plain_model, plain_modules

# What DeepSpeed's ZeRO-3 hangs on the parameters that it shards.
ZERO3 = "ds_tensor"


def named_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and stored buffers by their names in the plain model; each is there until the next one is asked for.

    Offloaded ones are read a module at a time; those that are sharded over processes are gathered by all of them
    together. ``state_dict`` is not called: on a CPU, bitsandbytes' changes the weights.

    Raises:
        InputError: weights that are nowhere to be read.
    """
    for prefix, module in plain_modules(model):
        with align_module_device(module):
            for name, held in _own(module):
                if held.device.type == "meta":
                    raise InputError(f"{prefix}{name} has no data (device meta): load the model with from_pretrained")
                for part, tensor in _unpacked(module, _whole(held)).items():
                    yield f"{prefix}{name}{part}", tensor


def loaded_model(model: torch.nn.Module) -> PreTrainedModel:
    """``plain_model``, where all of its weights are loaded, as a backward pass through them needs it.

    Raises:
        InputError: what ``plain_model`` refuses; a weight that is offloaded, or was made in inference mode.
    """
    plain = plain_model(model)
    for name, parameter in plain.named_parameters():
        if parameter.is_inference():
            raise InputError(
                "the model was loaded inside torch.inference_mode: load it outside, compile trains through it"
            )
        if parameter.device.type == "meta":
            raise InputError(
                f"{name} is offloaded, and compile needs all weights on one device: load the model without "
                "device_map, or spread it over GPUs with accelerate launch --use_fsdp --fsdp_version 2"
            )
    return plain


def _own(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    buffers = {
        name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
    }
    for name, tensor in (module._parameters | buffers).items():
        if tensor is not None:
            yield name, tensor


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, ZERO3) and not tensor.numel():
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def _unpacked(module: Any, weight: Any) -> dict[str, torch.Tensor]:
    """By what is added to its name, the tensor itself, or the tensors that quantisers keep instead."""
    kind = type(weight).__name__
    if kind == "Int8Params" and weight.dtype == torch.int8:
        # The first forward moves the scale from the weight to the module.
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return {"": weight.data, ".scale": scale}
    if kind == "Params4bit" and weight.quant_state is not None:
        return _four_bits(weight)
    if hasattr(weight, "__tensor_flatten__"):
        parts = {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}
        return {f".{name}{more}": tensor for name in parts for more, tensor in _unpacked(module, parts[name]).items()}
    return {"": weight}


def _four_bits(weight: Any) -> dict[str, torch.Tensor]:
    """Codes, the number that each stands for, and the scale of each block as bfloat16, which is all that CPUs keep."""
    from bitsandbytes import functional

    codes, state = weight.data, copy.copy(weight.quant_state)
    scale = state.absmax
    if getattr(state, "packing_format_for_cpu", False):
        scale = scale.T
        # The codes alone: scales that were quantised themselves would be quantised anew.
        state.original_nested = False
        codes, _ = functional._convert_weight_packed_for_cpu_inverse(codes, state)
    elif state.nested:
        scale = functional.dequantize_blockwise(scale, state.state2) + state.offset
    return {"": codes.reshape(-1).view(torch.uint8), ".code": state.code, ".scale": scale.reshape(-1).bfloat16()}
