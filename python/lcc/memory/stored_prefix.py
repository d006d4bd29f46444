"""What a model makes of a memory's prefix, kept in a file: whoever reads it can place memories without the weights.

Servers such as vLLM hold the weights in a form of their own. The prefix needs them once; buffer tokens need the rotary
tables alone, which follow from the config.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import MemoryFileError
from ..modeling.fingerprint import fingerprint, require_same
from ..modeling.kv import KV, no_tokens, rotary_tables_at
from ..modeling.loading import load_checkpoint
from ..modeling.prefill import prefill
from ..utils.hashing import json_digest
from ..utils.outputs import make_folder, os_errors
from ..utils.tensor_files import load_tensors, save_tensors
from .attachable import check_model, check_shape
from .attachment import stack_of
from .memory import Memory
from .parts import joined, placed_parts

FORMAT = "lcc-prefix-1"
LOCK = ".lock"
# Suffixes of the files of a model's folder that say what it computes.
READ = (".safetensors", ".json")


@dataclass(frozen=True)
class StoredPrefix:
    """A prefix that was read.

    Attributes:
        kv: rotated, the first token at position 0.
        fingerprint: of the model that read it; see ``lcc.fingerprint``.
    """

    kv: KV
    fingerprint: dict[str, str]


class Prefixes:
    """The prefixes of a model in a folder of files, each made when it is first asked for.

    Args:
        source: the model's folder or hub name.
        dtype: that the server holds K and V in.
        folder: of the files; it is made.
    """

    def __init__(self, source: str, dtype: torch.dtype, folder: Path):
        self.source, self.dtype, self.folder = source, dtype, folder
        self.config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with init_empty_weights():
            # Its weights are on no device; its rotary tables are real.
            self._weightless = AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)
        self._read: dict[tuple[int, ...], StoredPrefix] = {}

    def get(self, ids: Sequence[int]) -> StoredPrefix:
        """The prefix of these tokens. Loading the model, if it must be made, takes as long as that takes.

        Raises:
            InputError: the model cannot be loaded, or is not supported.
            MemoryFileError: the folder cannot be written.
        """
        ids = tuple(ids)
        if ids not in self._read:
            self._read[ids] = self._load_or_make(ids)
        return self._read[ids]

    def place(self, memory: Memory | Sequence[Memory]) -> KV:
        """What ``lcc.attach`` would put into a cache, rotated, the first token at position 0.

        Raises:
            InputError: a memory is an adapter, or its numbers are beyond the dtype; or what ``get`` refuses.
            MismatchError: a memory was compiled for another model, or the memories do not go together.
        """
        memories = stack_of(memory)
        for each in memories:
            check_shape(self.config, each)
        prefix = self.get(memories[0].prefix_ids)
        require_same(memories[0].fingerprint, prefix.fingerprint)
        return joined(list(placed_parts(memories, prefix.kv, self._tables, self.dtype, "cpu")), 0, self.dtype)

    def _tables(self, start: int, tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary_tables_at(self._weightless, torch.arange(start, start + tokens), dtype)

    def _load_or_make(self, ids: tuple[int, ...]) -> StoredPrefix:
        make_folder(self.folder)
        name = json_digest([_stamp(self.source, self.config), list(ids), str(self.dtype)])[:32]
        path = self.folder / f"{name}.safetensors"
        with os_errors(f"cannot write to {self.folder}"), FileLock(f"{path}{LOCK}"):
            try:
                return _load(path)
            except MemoryFileError:
                made = _make(self.source, ids, self.dtype)
                _save(path, made)
                return made


@torch.no_grad()
def _make(source: str, ids: tuple[int, ...], dtype: torch.dtype) -> StoredPrefix:
    """Read the prefix with the weights as they are stored for the fingerprint, then as they are served."""
    model, _ = load_checkpoint(source, _on_cpu)
    check_model(model)
    digests = fingerprint(model)
    # Not model.to(dtype), which would round the rotary frequencies too.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return StoredPrefix(prefill(model, ids) if ids else no_tokens(model), digests)


def _on_cpu(model: PreTrainedModel) -> PreTrainedModel:
    return model


def _save(path: Path, prefix: StoredPrefix) -> None:
    tensors = {"keys": prefix.kv.keys, "values": prefix.kv.values}
    save_tensors(path, FORMAT, tensors, {"fingerprint": prefix.fingerprint})


def _load(path: Path) -> StoredPrefix:
    tensors, metadata = load_tensors(path, FORMAT)
    return StoredPrefix(KV(tensors["keys"], tensors["values"], 0), metadata["fingerprint"])


def _stamp(source: str, config: PreTrainedConfig) -> list[list[str | int]] | str:
    """Another one whenever a file of a model's folder was written; of a hub name, the name and its commit.

    Raises:
        MemoryFileError: the folder cannot be read.
    """
    if not os.path.isdir(source):
        return f"{source}@{getattr(config, '_commit_hash', None)}"
    with os_errors(f"cannot read {source}"):
        files = sorted(path for path in Path(source).iterdir() if path.suffix in READ)
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
