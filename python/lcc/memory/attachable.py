"""What a memory can be attached to: which models, positions, caches and blocks; and numbers that the model can hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import StaticLayer

import lcc_kernels as lk

from ..errors import InputError, MismatchError
from ..modeling.architecture import check_architecture
from ..modeling.kv import KV, kv_shape
from ..modeling.window import check_window
from .memory import Memory


def check_model(model: PreTrainedModel) -> None:
    """Refuse models that cannot read a cache that is given.

    Raises:
        InputError: attention that is not supported, training with checkpointing, or embeddings that are offloaded.
    """
    if model.device.type == "meta":
        raise InputError(
            "the model's embeddings are offloaded: keep them on a device, with device_map={name: device}, and offload "
            "layers alone"
        )
    check_architecture(model)
    if any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise InputError("the model is training with checkpointing, which drops the cache: call model.eval()")


def check_memory(model: PreTrainedModel, memory: Memory) -> None:
    """Refuse a memory whose K and V are broken, or not of the model's shape.

    Raises:
        InputError: it holds NaN.
        MismatchError: its layers, heads, widths, rope or prefix are not the model's.
    """
    check_shape(model.config, memory)
    _check_prefix(model, memory)


def check_shape(config: PreTrainedConfig, memory: Memory) -> None:
    """``check_memory``, where the prefix is not looked at.

    Raises:
        InputError, MismatchError: as ``check_memory``.
    """
    memory.check()
    wanted = kv_shape(config)
    layers, memory_heads, _, memory_width = memory.kv_payload.dims
    for name, have, want in (
        ("layers", layers, wanted[0]),
        ("kv_heads", memory_heads, wanted[1]),
        ("head_dim", memory_width, wanted[2]),
        ("rope", memory.rope, config.rope_parameters),
    ):
        if have != want:
            raise MismatchError(f"the memory's {name} is {have} but the model's is {want}: not compiled for this model")


def check_adapted(model: PreTrainedModel, memory: Memory, start: int = 0) -> None:
    """Refuse a model that cannot read the prefix of an adapter's memory from position ``start`` on.

    Raises:
        InputError: as ``check_model`` and ``check_positions``, or the memory holds NaN.
        MismatchError: its prefix is not the model's.
    """
    check_model(model)
    memory.check()
    _check_prefix(model, memory)
    check_positions(model, start, start + len(memory.prefix_ids))


def _check_prefix(model: PreTrainedModel, memory: Memory) -> None:
    rows, largest = model.get_input_embeddings().weight.shape[0], max(memory.prefix_ids, default=0)
    if largest >= rows:
        raise MismatchError(f"the memory's prefix has token {largest} but the model embeds {rows} tokens")


def check_positions(model: PreTrainedModel, start: int, end: int) -> None:
    """Refuse positions that the model does not have, a query's behind them included, or rotates with two ropes.

    Raises:
        InputError: naming the positions.
    """
    remedy = "start further in front, or take a model with a longer window"
    check_window(model, end + 1, "a memory and a query behind it", remedy, start)


def check_range(kv: KV, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse K and V that ``dtype`` cannot hold once they are turned.

    Args:
        kv: as the cache gets it, but for the keys' rotation by ``cos`` and ``sin``, (tokens, rotary_dim).

    Raises:
        InputError: one of them would become infinite.
    """
    for name, tensor in (("keys", lk.apply_rotary(kv.keys, cos, sin)), ("values", kv.values)):
        if not bool(tensor.to(dtype).isfinite().all()):
            wide = "float32" if dtype == torch.bfloat16 else "bfloat16 or float32"
            raise InputError(
                f"the memory's {name} reach {float(tensor.abs().max()):.3g}, too large for the model's {dtype}: load "
                f"the model in {wide}"
            )


def check_blocks(block_table: torch.Tensor, needed: int, blocks: int) -> None:
    """Refuse a table of which a part could be written before the rest turns out to be wrong.

    Raises:
        InputError: blocks that are too few, out of range or named twice.
    """
    if block_table.ndim != 1 or len(block_table) < needed:
        raise InputError(f"the memory takes {needed} blocks; the block table is {tuple(block_table.shape)}")
    used = block_table[:needed].tolist()
    if len(set(used)) < needed or min(used) < 0 or max(used) >= blocks:
        raise InputError(f"the block table's first {needed} must be different blocks of 0 to {blocks - 1}; got {used}")


def check_static(model: PreTrainedModel, cache: StaticCache, memory: Memory, tokens: int) -> None:
    """Refuse a cache that cannot take ``tokens`` tokens and a query.

    Raises:
        InputError: another kind of cache, or one that is not allocated, not empty, too small, uneven, or of another
            dtype or device than the model.
        MismatchError: its layers, heads or widths are not the memory's.
    """
    if not isinstance(cache, StaticCache):
        raise InputError(f"cache is a {type(cache).__name__}; give a StaticCache, or none for a new dynamic one")
    kinds = {type(layer).__name__ for layer in cache.layers} - {StaticLayer.__name__}
    if kinds or cache.offloading:
        what = f"layers of {', '.join(sorted(kinds))}" if kinds else "offloaded layers"
        raise InputError(f"the cache has {what}: give a StaticCache of full attention that stays on the device")
    if not all(layer.is_initialized for layer in cache.layers):
        raise InputError(
            "the cache is not allocated: call cache.early_initialization(batch, kv_heads, head_dim, dtype, device)"
        )
    _check_tensors(model, memory, [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)])
    held, length = int(cache.get_seq_length()), cache.layers[0].keys.shape[2]
    if held:
        raise InputError(f"the cache holds {held} tokens already: call cache.reset() first, or take a new one")
    if length <= tokens:
        raise InputError(f"the cache has room for {length} tokens; the memory takes {tokens}, and a query needs some")


def _check_tensors(model: PreTrainedModel, memory: Memory, tensors: Sequence[torch.Tensor]) -> None:
    """``tensors`` are keys and values of every layer, each to be (batch, kv_heads, length, head_dim)."""
    layers, heads, _, width = memory.kv_payload.dims
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(tensors) != 2 * layers or any((shape[1], shape[3]) != (heads, width) for shape in shapes):
        cached = sorted({(len(tensors) // 2, shape[1], shape[3]) for shape in shapes})
        raise MismatchError(
            f"the cache's (layers, kv_heads, head_dim) are {cached} but the memory's {(layers, heads, width)}"
        )
    if len(shapes) > 1:
        raise InputError(f"the cache's layers have different shapes, {sorted(shapes)}: allocate all of them alike")
    for name, have, want in (
        ("dtype", {tensor.dtype for tensor in tensors}, model.dtype),
        ("device", {tensor.device for tensor in tensors}, model.device),
    ):
        if have != {want}:
            held = ", ".join(sorted(map(str, have)))
            raise InputError(f"the cache's {name} is {held} but the model's is {want}: allocate it with the model's")
