"""Memories for readers that know nothing of this package: a peft adapter, or K and V as they stand in a cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import CartridgeConfig, TaskType
from peft.utils import CONFIG_NAME
from safetensors.torch import save
from transformers import PreTrainedModel

from .attach import attach, stack_of
from .errors import InputError, MemoryFileError
from .files import remove_partial, write_bytes, write_tensors
from .kv import KV
from .memory import Memory

CACHE_FORMAT = "lcc-cache-1"
CACHE_FILE, CARTRIDGE_FILE = "cache.safetensors", "adapter_model.safetensors"


def export(
    model: PreTrainedModel, memory: Memory | Sequence[Memory], folder: str | os.PathLike, to: str = "cartridge"
) -> Path:
    """Write what ``attach`` puts into a cache (prefix and buffer tokens, turned, in the model's dtype) to a folder.

    ``cartridge``: an adapter for peft's ``CARTRIDGE`` tuner; ``PeftModel.from_pretrained(model, folder)`` reads it, and
    the prefix stands in it as frozen tokens. ``safetensors``: ``cache.safetensors`` with ``keys`` and ``values``; see
    docs/memory-format.md. Either is followed by queries from position ``tokens`` on: give those ids
    ``ChatFormat.query_ids``, or the chat template's text from the end of the prefix on. An export that was killed is
    not readable, and the next one into the folder replaces it.

    Returns:
        The file with the tensors.

    Raises:
        InputError: an unknown target, or what ``attach`` refuses.
        MismatchError: the memory does not fit the model.
        MemoryFileError: the folder cannot be written.
    """
    if to not in WRITERS:
        raise InputError(f"unknown target {to!r}; there are {', '.join(WRITERS)}")
    kv = attach(model, memory).read()
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WRITERS[to](model, stack_of(memory), kv, folder)
    except OSError as error:
        raise MemoryFileError(f"cannot write to the folder {folder}: {error.strerror or error}") from error


def _write_cartridge(model: PreTrainedModel, memories: Sequence[Memory], kv: KV, folder: Path) -> Path:
    """peft's layout: (tokens, layers x [key, value] x kv_heads x head_dim), flattened."""
    layers, heads, tokens, width = kv.keys.shape
    config = CartridgeConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=model.config._name_or_path,
        inference_mode=True,
        num_virtual_tokens=tokens,
        num_frozen_tokens=len(memories[0].prefix_ids),
        num_layers=layers,
        num_attention_heads=heads,
        token_dim=heads * width,
        num_transformer_submodules=1,
    )
    # (layers, 2, heads, tokens, width) becomes (tokens, layers, 2, heads, width).
    stacked = torch.stack((kv.keys, kv.values), 1).permute(3, 0, 1, 2, 4)
    path, config_path = folder / CARTRIDGE_FILE, folder / CONFIG_NAME
    content = save({"prompt_embeddings": stacked.reshape(tokens, -1).contiguous().cpu()})
    # peft finds no adapter in a folder without a config, as which an interrupted export is left.
    config_path.unlink(missing_ok=True)
    write_bytes(path, content)
    write_bytes(config_path, json.dumps(config.to_dict(), indent=2, sort_keys=True).encode())
    remove_partial(path)
    remove_partial(config_path)
    return path


def _write_cache(model: PreTrainedModel, memories: Sequence[Memory], kv: KV, folder: Path) -> Path:
    metadata = {
        "prefix_ids": memories[0].prefix_ids,
        "buffer_tokens": [memory.buffer_tokens for memory in memories],
        "rope": memories[0].rope,
        "fingerprint": memories[0].fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    path = folder / CACHE_FILE
    write_tensors(path, CACHE_FORMAT, {"keys": kv.keys, "values": kv.values}, metadata)
    remove_partial(path)
    return path


WRITERS: dict[str, Callable[[PreTrainedModel, Sequence[Memory], KV, Path], Path]] = {
    "cartridge": _write_cartridge,
    "safetensors": _write_cache,
}
