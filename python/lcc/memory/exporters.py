"""Memories for readers that know nothing of this package: a peft adapter, or K and V as they stand in a cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from peft import CartridgeConfig, LoraConfig, PeftConfig, TaskType
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel

from ..errors import InputError, MemoryFileError
from ..modeling.adapter import adaptable_layers, check_fits
from ..modeling.wrappers import plain_model
from ..utils.outputs import (
    Output,
    Rule,
    check_folder,
    make_folder,
    names_folder,
    os_errors,
    remove_partial,
    write_bytes,
)
from ..utils.tensor_files import ours, save_tensors
from .attachable import check_adapted
from .attachment import attach, stack_of
from .llama_cpp import StateOptions, placeholders, state_of
from .memory import Memory
from .payload import AdapterPayload

CACHE_FORMAT, CARTRIDGE_FORMAT, PEFT_FORMAT = "lcc-cache-1", "lcc-cartridge-1", "lcc-peft-1"
MODEL_CONFIG, PEFT_TENSORS = "config.json", "adapter_model.safetensors"
# What peft calls the model inside its own.
INSIDE_PEFT = "base_model.model."


class _Content(Protocol):
    """What an export's files say."""

    def write(self, files: Sequence[Output]) -> None:
        """Write them, the target's own file first."""


@dataclass(frozen=True)
class _Tensors:
    """A file of safetensors; with a config of peft's beside it, which says the same."""

    format_name: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    config: PeftConfig | None = None

    def write(self, files: Sequence[Output]) -> None:
        """Write the config last: peft finds no adapter without one, as which an interrupted export is left."""
        file, *config_files = files
        for config_file in config_files:
            config_file.check()
            with os_errors(f"cannot write {config_file}"):
                config_file.path.unlink(missing_ok=True)
        save_tensors(file, self.format_name, self.tensors, self.metadata)
        if self.config is not None:
            # Sets have no order.
            config = {name: sorted(v) if isinstance(v, set) else v for name, v in self.config.to_dict().items()}
            write_bytes(config_files[0], json.dumps(config, indent=2, sort_keys=True).encode())


@dataclass(frozen=True)
class _Bytes:
    """A file of another format."""

    content: bytes

    def write(self, files: Sequence[Output]) -> None:
        """Write the only file."""
        write_bytes(files[0], self.content)


@dataclass(frozen=True)
class Target:
    """What a memory can be exported to.

    Attributes:
        file: the name of the file with K and V, or with the LoRA.
        ours: which file of that name an export replaces.
        content: of the files, from a plain model, memories, ``verify`` and options.
        options: a dataclass of the options, if there are any.
        in_folder: the file has this name, in a folder for the export alone. Else it is any file.
    """

    file: str
    ours: Rule
    content: Callable[..., _Content]
    options: type | None = None
    in_folder: bool = True


def export(
    model: PreTrainedModel,
    memory: Memory | Sequence[Memory],
    folder: str | os.PathLike,
    to: str = "cartridge",
    *,
    verify: bool = True,
    force: bool = False,
    inputs: Sequence[Path] = (),
    **options: Any,
) -> Path:
    """Write what a model reads of a memory to a folder.

    ``cartridge``: what ``attach`` puts into a cache (prefix and buffer tokens, turned, in the model's dtype) as an
    adapter for peft's ``CARTRIDGE`` tuner; ``PeftModel.from_pretrained(model, folder)`` reads it, and the prefix stands
    in it as frozen tokens. ``safetensors``: the same as ``cache.safetensors`` with ``keys`` and ``values``; see
    docs/memory-format.md. ``llama-cpp``: the same as a sequence state, which a llama.cpp server restores into a slot;
    the query goes behind ``lcc.memory.llama_cpp.placeholders`` of the file. All three are followed by queries from
    position ``tokens`` on: give those ids ``ChatFormat.query_ids``, or the chat template's text from the end of the
    prefix on. ``peft``: a memory of the kind ``adapter`` as a LoRA of peft's. An export that was killed is not
    readable, and the next one into the folder replaces it.

    Args:
        folder: of ``llama-cpp`` also the file; what is no folder and does not end in a slash is one.
        verify: as for ``attach``.
        force: replace files of these names that are no exports.
        inputs: files that are never replaced, such as the memory's own.
        options: of ``llama-cpp``, how its server was started: ``kv``, "f16" or "f32", the type of its cache;
            ``flash_attn``, True or False; ``state_version`` and ``streams``, of the files that it saves.

    Returns:
        The file with the tensors.

    Raises:
        InputError: an unknown target or option, a target that is not for this kind of memory or architecture, numbers
            that the target's dtype cannot hold, or what ``attach`` refuses.
        MismatchError: the memory was compiled for another model.
        MemoryFileError: the folder cannot be written, or a file in it must not be replaced.
    """
    files = export_files(folder, to, force, inputs, options)
    content = TARGETS[to].content(plain_model(model), stack_of(memory), verify, **options)
    make_folder(files[0].path.parent)
    content.write(files)
    for file in files:
        remove_partial(file)
    return files[0].path


def export_files(
    folder: str | os.PathLike,
    to: str,
    force: bool = False,
    inputs: Sequence[Path] = (),
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Output, ...]:
    """The files of an export, the one with the tensors first; they replace those of an earlier one.

    Raises:
        InputError: an unknown target, or options that it does not take.
        MemoryFileError: the folder cannot be used, or a file in it must not be replaced.
    """
    target = _target(to, options)
    in_folder = target.in_folder or names_folder(os.fspath(folder))
    path = Path(folder, target.file) if in_folder else Path(folder)
    files = [Output(path, tuple(inputs), force, target.ours)]
    if target.file == PEFT_TENSORS:
        files.append(replace(files[0], path=path.with_name(CONFIG_NAME), ours=_beside(target.ours)))
    check_folder(path.parent)
    if target.in_folder and path.with_name(MODEL_CONFIG).exists():
        raise MemoryFileError(
            f"the folder {folder} holds a model, which an adapter beside it would change: name another"
        )
    if path.parent.is_dir():
        for file in files:
            file.check()
    return tuple(files)


def _target(to: str, options: Mapping[str, Any]) -> Target:
    """The target of that name, if it takes these options.

    Raises:
        InputError: it does not, or there is no such target.
    """
    if to not in TARGETS:
        raise InputError(f"unknown target {to!r}; there are {', '.join(TARGETS)}")
    target = TARGETS[to]
    known = [field.name for field in fields(target.options)] if target.options else []
    for name in options:
        if name not in known:
            raise InputError(f"the target {to} has no option {name}: it has {', '.join(known) or 'none'}")
    if target.options:
        target.options(**options)
    return target


def _beside(rule: Rule) -> Rule:
    """The rule of a config, which does not say who wrote it."""

    def check(config: Path) -> None:
        try:
            rule(config.with_name(PEFT_TENSORS))
        except MemoryFileError as error:
            raise MemoryFileError(f"{config} is there already, and beside it is no export ({error})") from error

    return check


def _cartridge(model: PreTrainedModel, memories: Sequence[Memory], verify: bool) -> _Tensors:
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
    return _Tensors(CARTRIDGE_FORMAT, {"prompt_embeddings": stacked.reshape(tokens, -1)}, {}, config)


def _cache(model: PreTrainedModel, memories: Sequence[Memory], verify: bool) -> _Tensors:
    kv = attach(model, memories, verify=verify).kv()
    metadata = {
        "prefix_ids": memories[0].prefix_ids,
        "buffer_tokens": [memory.buffer_tokens for memory in memories],
        "rope": memories[0].rope,
        "fingerprint": memories[0].fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return _Tensors(CACHE_FORMAT, {"keys": kv.keys, "values": kv.values}, metadata)


def _state(model: PreTrainedModel, memories: Sequence[Memory], verify: bool, **options: Any) -> _Bytes:
    return _Bytes(state_of(model, attach(model, memories, verify=verify).kv(), StateOptions(**options)))


def _lora(model: PreTrainedModel, memories: Sequence[Memory], verify: bool) -> _Tensors:
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
    return _Tensors(PEFT_FORMAT, {INSIDE_PEFT + name: tensor for name, tensor in tensors.items()}, {}, config)


def _ours_in_llama_cpp(path: Path) -> None:
    placeholders(path)


TARGETS = {
    "cartridge": Target(PEFT_TENSORS, ours(CARTRIDGE_FORMAT), _cartridge),
    "safetensors": Target("cache.safetensors", ours(CACHE_FORMAT), _cache),
    "llama-cpp": Target("state.ggsq", _ours_in_llama_cpp, _state, StateOptions, in_folder=False),
    "peft": Target(PEFT_TENSORS, ours(PEFT_FORMAT), _lora),
}
