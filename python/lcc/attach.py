"""Put a memory in front of a model: a transformers cache that plain ``generate`` reads."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from .encode import read_text
from .errors import InputError, MismatchError
from .kv import SharedCache, check_architecture
from .memory import Memory


@torch.no_grad()
def attach(model: PreTrainedModel, memory: Memory) -> SharedCache:
    """Return a fresh cache that holds the memory's prefix and buffer tokens, keys rotated to positions 0, 1, ....

    It serves one sequence or any batch or beams. ``generate`` wants placeholder ids for the cached tokens in front of
    the query: ``lcc.prompt`` makes them. A cache grows with what is generated; attach again for the next query.

    Raises:
        InputError: the model carries an adapter, or attention that is not supported.
        MismatchError: the memory's layers, heads, widths or rope are not the model's.
    """
    check_architecture(model)
    if any(isinstance(module, BaseTunerLayer) and not module.disable_adapters for module in model.modules()):
        raise InputError("the model carries an active adapter: unload it, a memory is read by the plain model")
    _check_shapes(model, memory)
    kv = memory.to(model.device, model.dtype).kv
    if not memory.prefix_ids:
        return kv.rotated(model, 0).cache().follow(model)
    prefix = read_text(model, memory.prefix_ids)
    return kv.rotated(model, len(prefix)).after(prefix).cache().follow(model)


def _check_shapes(model: PreTrainedModel, memory: Memory) -> None:
    config = model.config
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers, memory_heads, _, memory_width = memory.kv.keys.shape
    for name, have, want in (
        ("layers", layers, config.num_hidden_layers),
        ("kv_heads", memory_heads, heads),
        ("head_dim", memory_width, width),
        ("rope", memory.rope, config.rope_parameters),
    ):
        if have != want:
            raise MismatchError(f"the memory's {name} is {have} but the model's is {want}: not compiled for this model")
