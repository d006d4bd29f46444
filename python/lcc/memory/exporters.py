"""Memories for readers that know nothing of this package: a peft adapter, or K and V as they stand in a cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import CartridgeConfig, LoraConfig, PeftConfig, TaskType
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from ..errors import InputError, MemoryFileError
from ..modeling.adapter import adaptable_layers, check_fits
from ..modeling.wrappers import plain_model
from ..utils.outputs import Output, Rule, check_folder, make_folder, os_errors, remove_partial, write_bytes
from ..utils.tensor_files import ours, save_tensors
from .attachable import check_adapted
from .attachment import attach, stack_of
from .memory import Memory
from .payload import AdapterPayload

CACHE_FORMAT, CARTRIDGE_FORMAT, PEFT_FORMAT = "lcc-cache-1", "lcc-cartridge-1", "lcc-peft-1"
MODEL_CONFIG, PEFT_TENSORS = "config.json", "adapter_model.safetensors"
# The file with the tensors of each target, and its format.
TENSORS = {
    "cartridge": (PEFT_TENSORS, CARTRIDGE_FORMAT),
    "safetensors": ("cache.safetensors", CACHE_FORMAT),
    "peft": (PEFT_TENSORS, PEFT_FORMAT),
}
# What peft calls the model inside its own.
INSIDE_PEFT = "base_model.model."


@dataclass(frozen=True)
class _Content:
    """What an export's files say; a target of peft's has a config."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    config: PeftConfig | None = None


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
    """Write what a model reads of a memory to a folder.

    ``cartridge``: what ``attach`` puts into a cache (prefix and buffer tokens, turned, in the model's dtype) as an
    adapter for peft's ``CARTRIDGE`` tuner; ``PeftModel.from_pretrained(model, folder)`` reads it, and the prefix stands
    in it as frozen tokens. ``safetensors``: the same as ``cache.safetensors`` with ``keys`` and ``values``; see
    docs/memory-format.md. Either is followed by queries from position ``tokens`` on: give those ids
    ``ChatFormat.query_ids``, or the chat template's text from the end of the prefix on. ``peft``: a memory of the kind
    ``adapter`` as a LoRA of peft's. An export that was killed is not readable, and the next one into the folder
    replaces it.

    Args:
        verify: as for ``attach``.
        force: replace files of these names that are no exports.
        inputs: files that are never replaced, such as the memory's own.

    Returns:
        The file with the tensors.

    Raises:
        InputError: an unknown target, one that is not for this kind of memory, or what ``attach`` refuses.
        MismatchError: the memory was compiled for another model.
        MemoryFileError: the folder cannot be written, or a file in it must not be replaced.
    """
    files = export_files(folder, to, force, inputs)
    content = CONTENTS[to](plain_model(model), stack_of(memory), verify)
    make_folder(Path(folder))
    return _write(files, TENSORS[to][1], content)


def export_files(
    folder: str | os.PathLike, to: str, force: bool = False, inputs: Sequence[Path] = ()
) -> tuple[Output, ...]:
    """The files of an export, the one with the tensors first; they replace those of an earlier one.

    Raises:
        InputError: an unknown target.
        MemoryFileError: the folder cannot be used, or a file in it must not be replaced.
    """
    if to not in TENSORS:
        raise InputError(f"unknown target {to!r}; there are {', '.join(TENSORS)}")
    folder = Path(folder)
    name, format_name = TENSORS[to]
    files = [Output(folder / name, tuple(inputs), force, ours(format_name))]
    if name == PEFT_TENSORS:
        files.append(replace(files[0], path=folder / CONFIG_NAME, ours=_beside_our_tensors(format_name)))
    check_folder(folder)
    if (folder / MODEL_CONFIG).exists():
        raise MemoryFileError(
            f"the folder {folder} holds a model, which an adapter beside it would change: name another"
        )
    if folder.is_dir():
        for file in files:
            file.check()
    return tuple(files)


def _beside_our_tensors(format_name: str) -> Rule:
    """The rule of a config, which does not say who wrote it."""

    def check(config: Path) -> None:
        try:
            ours(format_name)(config.with_name(PEFT_TENSORS))
        except MemoryFileError as error:
            raise MemoryFileError(f"{config} is there already, and beside it is no export ({error})") from error

    return check


def _write(files: Sequence[Output], format_name: str, content: _Content) -> Path:
    file, *config_files = files
    for config_file in config_files:
        # peft finds no adapter in a folder without a config, as which an interrupted export is left.
        config_file.check()
        with os_errors(f"cannot write {config_file}"):
            config_file.path.unlink(missing_ok=True)
    save_tensors(file, format_name, content.tensors, content.metadata)
    if content.config is not None:
        # Sets have no order.
        config = {name: sorted(v) if isinstance(v, set) else v for name, v in content.config.to_dict().items()}
        write_bytes(config_files[0], json.dumps(config, indent=2, sort_keys=True).encode())
    for each in files:
        remove_partial(each)
    return file.path


def _cartridge(model: PreTrainedModel, memories: Sequence[Memory], verify: bool) -> _Content:
    """peft's layout: (tokens, layers x [key, value] x kv_heads x head_dim), flattened."""
    kv = attach(model, memories, verify=verify).kv()
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
    return _Content({"prompt_embeddings": stacked.reshape(tokens, -1)}, {}, config)


def _cache(model: PreTrainedModel, memories: Sequence[Memory], verify: bool) -> _Content:
    kv = attach(model, memories, verify=verify).kv()
    metadata = {
        "prefix_ids": memories[0].prefix_ids,
        "buffer_tokens": [memory.buffer_tokens for memory in memories],
        "rope": memories[0].rope,
        "fingerprint": memories[0].fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return _Content({"keys": kv.keys, "values": kv.values}, metadata)


def _lora(model: PreTrainedModel, memories: Sequence[Memory], verify: bool) -> _Content:
    """A LoRA as peft writes it; peft lets it act on all tokens, unless it is switched off for a query."""
    (memory, *others) = memories
    payload = memory.payload
    if others or not isinstance(payload, AdapterPayload):
        what = f"there are {len(memories)}" if others else f"this is one of {payload.kind}"
        raise InputError(f"peft's LoRA is one memory of the kind adapter, and {what}: export K and V to cartridge")
    check_adapted(model, memory)
    if verify:
        memory.verify(model)
    layers, adapter = adaptable_layers(model), payload.to(model.device, model.dtype).adapter
    check_fits(adapter, layers)
    targets = payload.metadata()[payload.kind]["targets"]
    meant = {name for name in layers if name.rpartition(".")[2] in targets}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=model.config._name_or_path,
        inference_mode=True,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=targets if meant == adapter.down.keys() else sorted(adapter.down),
        bias="none",
    )
    tensors = AdapterPayload(adapter).tensors()
    return _Content({INSIDE_PEFT + name: tensor for name, tensor in tensors.items()}, {}, config)


CONTENTS: dict[str, Callable[[PreTrainedModel, Sequence[Memory], bool], _Content]] = {
    "cartridge": _cartridge,
    "safetensors": _cache,
    "peft": _lora,
}
