"""Memories for readers that know nothing of this package: a peft adapter, or K and V as they stand in a cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import CartridgeConfig, TaskType
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from ..errors import InputError, MemoryFileError
from ..modeling.kv import KV
from ..modeling.wrappers import plain_model
from ..utils.outputs import Output, check_folder, make_folder, os_errors, remove_partial, write_bytes
from ..utils.tensor_files import ours, save_tensors
from .attachment import attach, stack_of
from .memory import Memory

CACHE_FORMAT, CARTRIDGE_FORMAT = "lcc-cache-1", "lcc-cartridge-1"
MODEL_CONFIG = "config.json"
# The file with the tensors of each target, and its format.
TENSORS = {
    "cartridge": ("adapter_model.safetensors", CARTRIDGE_FORMAT),
    "safetensors": ("cache.safetensors", CACHE_FORMAT),
}


def export(
    model: PreTrainedModel,
    memory: Memory | Sequence[Memory],
    folder: str | os.PathLike,
    to: str = "cartridge",
    *,
    verify: bool = True,
    force: bool = False,
    inputs: Sequence[Path] = (),
) -> Path:
    """Write what ``attach`` puts into a cache (prefix and buffer tokens, turned, in the model's dtype) to a folder.

    ``cartridge``: an adapter for peft's ``CARTRIDGE`` tuner; ``PeftModel.from_pretrained(model, folder)`` reads it, and
    the prefix stands in it as frozen tokens. ``safetensors``: ``cache.safetensors`` with ``keys`` and ``values``; see
    docs/memory-format.md. Either is followed by queries from position ``tokens`` on: give those ids
    ``ChatFormat.query_ids``, or the chat template's text from the end of the prefix on. An export that was killed is
    not readable, and the next one into the folder replaces it.

    Args:
        verify: as for ``attach``.
        force: replace files of these names that are no exports.
        inputs: files that are never replaced, such as the memory's own.

    Returns:
        The file with the tensors.

    Raises:
        InputError: an unknown target, or what ``attach`` refuses.
        MismatchError: the memory was compiled for another model.
        MemoryFileError: the folder cannot be written, or a file in it must not be replaced.
    """
    files = export_files(folder, to, force, inputs)
    model = plain_model(model)
    kv = attach(model, memory, verify=verify).kv()
    make_folder(Path(folder))
    return WRITERS[to](model, stack_of(memory), kv, files)


def export_files(
    folder: str | os.PathLike, to: str, force: bool = False, inputs: Sequence[Path] = ()
) -> tuple[Output, ...]:
    """The files of an export, the one with the tensors first; they replace those of an earlier one.

    Raises:
        InputError: an unknown target.
        MemoryFileError: the folder cannot be used, or a file in it must not be replaced.
    """
    if to not in WRITERS:
        raise InputError(f"unknown target {to!r}; there are {', '.join(WRITERS)}")
    folder = Path(folder)
    name, format_name = TENSORS[to]
    files = [Output(folder / name, tuple(inputs), force, ours(format_name))]
    if to == "cartridge":
        files.append(replace(files[0], path=folder / CONFIG_NAME, ours=_beside_our_tensors))
    check_folder(folder)
    if (folder / MODEL_CONFIG).exists():
        raise MemoryFileError(
            f"the folder {folder} holds a model, which an adapter beside it would change: name another"
        )
    if folder.is_dir():
        for file in files:
            file.check()
    return tuple(files)


def _beside_our_tensors(config: Path) -> None:
    """The rule of a config, which does not say who wrote it."""
    name, format_name = TENSORS["cartridge"]
    try:
        ours(format_name)(config.with_name(name))
    except MemoryFileError as error:
        raise MemoryFileError(f"{config} is there already, and beside it is no export ({error})") from error


def _write_cartridge(model: PreTrainedModel, memories: Sequence[Memory], kv: KV, files: Sequence[Output]) -> Path:
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
    file, config_file = files
    # peft finds no adapter in a folder without a config, as which an interrupted export is left.
    config_file.check()
    with os_errors(f"cannot write {config_file}"):
        config_file.path.unlink(missing_ok=True)
    save_tensors(file, CARTRIDGE_FORMAT, {"prompt_embeddings": stacked.reshape(tokens, -1)}, {})
    write_bytes(config_file, json.dumps(config.to_dict(), indent=2, sort_keys=True).encode())
    remove_partial(file)
    remove_partial(config_file)
    return file.path


def _write_cache(model: PreTrainedModel, memories: Sequence[Memory], kv: KV, files: Sequence[Output]) -> Path:
    metadata = {
        "prefix_ids": memories[0].prefix_ids,
        "buffer_tokens": [memory.buffer_tokens for memory in memories],
        "rope": memories[0].rope,
        "fingerprint": memories[0].fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    (file,) = files
    save_tensors(file, CACHE_FORMAT, {"keys": kv.keys, "values": kv.values}, metadata)
    remove_partial(file)
    return file.path


WRITERS: dict[str, Callable[[PreTrainedModel, Sequence[Memory], KV, Sequence[Output]], Path]] = {
    "cartridge": _write_cartridge,
    "safetensors": _write_cache,
}
