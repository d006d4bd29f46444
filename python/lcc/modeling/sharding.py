"""Weights spread over processes, as ``accelerate launch`` was told to: FSDP2, or DeepSpeed's ZeRO-3.

Either way embeddings and head stay whole everywhere: the loss reads the head's weight itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..errors import InputError
from .kv import decoder
from .weights import ZERO3

Place = Callable[[PreTrainedModel], PreTrainedModel]


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether weights are spread over processes, so that every forward needs all of them."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, ZERO3) for parameter in model.parameters())


def placement(device: torch.device) -> Place:
    """What puts a model on ``device``, sharded if accelerate was told to shard."""
    from accelerate.utils import parse_flag_from_env

    if dist.is_initialized() and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return lambda model: _fsdp2(model, device)
    if dist.is_initialized() and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return lambda model: _zero3(model, device)
    return lambda model: model.to(device)


def _fsdp2(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Shard each decoder layer in turn, so that the whole model never is on one device.

    Raises:
        InputError: accelerate was told to use FSDP of version 1.
    """
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise InputError("only FSDP2 shards what compile needs: accelerate launch --use_fsdp --fsdp_version 2")
    options = {"reshard_after_forward": plugin.reshard_after_forward, "offload_policy": plugin.cpu_offload}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in decoder(model).layers:
        fully_shard(layer, mesh=mesh, **options)
    return model.to(device)


def _zero3(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Shard the decoder layers.

    Raises:
        InputError: accelerate was told to use another stage of ZeRO.
    """
    import deepspeed
    from accelerate import DeepSpeedPlugin

    zero = DeepSpeedPlugin().deepspeed_config["zero_optimization"]
    if zero["stage"] != 3:
        raise InputError("only ZeRO-3 shards weights: accelerate launch --use_deepspeed --zero_stage 3")
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(model.dtype)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    if precision:
        config[precision] = {"enabled": True}
    # Weights that want a gradient would get optimizer states.
    layers = decoder(model.requires_grad_(False).to(device)).layers
    engine, *_ = deepspeed.initialize(model=layers, config=config)
    # The hooks that gather weights live as long as the engine does; it is no submodule.
    object.__setattr__(model, "deepspeed_engine", engine)
    return model
