"""Sequence states of llama.cpp: K and V as its server restores them into a slot, and the tokens it takes them for.

The formats of these files have numbers, which a server compares for equality. All integers are little-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import InputError, MemoryFileError
from ..modeling.kv import KV, kv_shape, rotary_tables
from ..utils.outputs import os_errors
from ..utils.values import check, check_count

MAGIC = b"qsgg"
# Magic, version and the number of tokens.
HEADER = struct.Struct("<4sII")
# What stands behind the number of layers: from version 4 on, how quantised K and V are rotated. f16 and f32 are not.
VERSIONS = {2: b"", 3: b"", 4: struct.pack("<II", 0, 0)}
# The types of a cache: ggml's number, and torch's.
TYPES = {"f32": (0, torch.float32), "f16": (1, torch.float16)}
# Whether llama.cpp turns a key's neighbouring channels together, by config.model_type: its converter puts side by side
# the channels that transformers turns together, which are half a head apart.
NEIGHBOURS = {"gemma": False, "llama": True, "mistral": True, "phi3": False, "qwen2": False, "qwen3": False}
# The kinds of rotary tables that both make alike.
ROPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class StateOptions:
    """How the server was started that is to restore a state.

    Attributes:
        kv: type of its cache, ``--cache-type-k`` and ``--cache-type-v``.
        flash_attn: whether ``--flash-attn`` is on, as it is by default where the device has it.
        state_version: of the files that it writes; ``parse_state`` reads it off one.
        streams: of its cache, which ``parse_state`` reads too: 1 with ``--kv-unified`` or with one slot, else one a
            slot.

    Raises:
        InputError: a type or a version that cannot be written.
    """

    kv: Literal["f16", "f32"] = "f16"
    flash_attn: bool = True
    state_version: int = max(VERSIONS)
    streams: int = 1

    def __post_init__(self) -> None:
        check("kv", self.kv, Literal["f16", "f32"])
        check("flash_attn", self.flash_attn, bool)
        check("state_version", self.state_version, int)
        check_count("streams", self.streams)
        if self.state_version not in VERSIONS:
            raise InputError(
                f"state_version is {self.state_version}; the versions {', '.join(map(str, VERSIONS))} can be written: "
                "take a server of one of them"
            )


def state_of(model: PreTrainedModel, kv: KV, options: StateOptions) -> bytes:
    """The state that holds ``kv``, for a server with ``model`` as a GGUF file.

    Args:
        kv: as it stands in the model's cache, keys rotated, on any device.

    Raises:
        InputError: the order of the model's channels in llama.cpp is not known, or K and V are too large for f16.
    """
    return state_bytes(kv, options, _neighbours(model), model.get_input_embeddings().weight.shape[0])


def state_bytes(kv: KV, options: StateOptions, neighbours: bool, vocabulary: int) -> bytes:
    """The state that holds ``kv``.

    Its tokens are one placeholder, repeated. A digest of K and V chooses it, so that a server takes one memory for
    another of the same length only with a chance of 1 in ``vocabulary``.

    Args:
        kv: keys rotated to ``kv.start`` and on, any float dtype.
        neighbours: put side by side the channels of a key that are half a head apart.
        vocabulary: how many tokens the model has.

    Raises:
        InputError: K and V are too large for f16.
        ValueError: the keys are unrotated.
    """
    keys, values = (_array(kv, name, options.kv) for name in ("keys", "values"))
    if neighbours:
        keys = keys.reshape(*keys.shape[:3], 2, -1).swapaxes(3, 4).reshape(keys.shape)
    # The cells of the first stream; each other stream has none.
    streams = struct.pack("<I", options.streams), bytes(4 * (options.streams - 1))
    body = b"".join((streams[0], _cells(kv), *_layers(keys, values, options), streams[1]))
    placeholder = int.from_bytes(hashlib.sha256(body).digest()[:8], "little") % vocabulary
    tokens = np.full(len(kv), placeholder, "<i4").tobytes()
    return HEADER.pack(MAGIC, options.state_version, len(kv)) + tokens + body


def placeholders(path: str | os.PathLike) -> list[int]:
    """The token ids that stand for a state of this module's: a prompt is these, and then the query's.

    Raises:
        MemoryFileError: the file cannot be read, is no such state, or was saved by a server.
    """
    version, ids, _ = _read(path)
    if version not in VERSIONS or len(set(ids)) != 1 or ids[0] < 0:
        raise MemoryFileError(f"{path} is a sequence state of llama.cpp, but not one of this package's")
    return ids


def parse_state(path: str | os.PathLike) -> dict[str, int]:
    """``state_version`` and ``streams`` of a state that a server saved; it restores no others.

    ``POST /slots/0?action=save`` saves one, of an empty slot too.

    Raises:
        MemoryFileError: the file cannot be read, or is no sequence state.
    """
    version, _, streams = _read(path)
    return {"state_version": version, "streams": streams}


def _read(path: str | os.PathLike) -> tuple[int, list[int], int]:
    """The version, what stands in the place of the tokens, where newer servers pack more, and the streams."""
    with os_errors(f"cannot read {path}"), Path(path).open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise MemoryFileError(f"{path} is no sequence state of llama.cpp")
        _, version, tokens = HEADER.unpack(header)
        words = file.read(4 * tokens + 4)
    if len(words) < 4 * tokens + 4:
        raise MemoryFileError(f"{path} is truncated: its header speaks of {tokens} tokens")
    *ids, streams = np.frombuffer(words, "<i4").tolist()
    return version, ids, streams


def _array(kv: KV, name: str, kind: str) -> np.ndarray:
    """Keys or values, (layers, kv_heads, tokens, head_dim), in the type of the cache.

    Raises:
        InputError: they are too large for it.
    """
    tensor = getattr(kv, name).detach().cpu()
    cast = tensor.to(TYPES[kind][1])
    if not bool(cast.isfinite().all()):
        raise InputError(
            f"the memory's {name} reach {float(tensor.abs().max()):.3g}, too large for {kind}: take kv f32"
        )
    return cast.numpy()


def _cells(kv: KV) -> bytes:
    """How many cells there are, one a token, each of one sequence, 0: position, how many sequences, and which."""
    positions = np.arange(kv.end - len(kv), kv.end)
    cells = np.stack((positions, np.ones_like(positions), np.zeros_like(positions)), 1)
    return struct.pack("<I", len(kv)) + cells.astype("<i4").tobytes()


def _layers(keys: np.ndarray, values: np.ndarray, options: StateOptions) -> Iterator[bytes]:
    """All layers' keys, then all layers' values, which stand channel by channel where flash attention is off."""
    layers, heads, _, width = keys.shape
    kind, row = TYPES[options.kv][0], heads * width
    yield struct.pack("<II", not options.flash_attn, layers) + VERSIONS[options.state_version]
    for layer in keys:
        yield struct.pack("<iQ", kind, row * keys.itemsize) + _by_token(layer)
    for layer in values:
        if options.flash_attn:
            yield struct.pack("<iQ", kind, row * values.itemsize) + _by_token(layer)
        else:
            yield struct.pack("<iII", kind, values.itemsize, row) + _little(layer.swapaxes(1, 2))


def _by_token(layer: np.ndarray) -> bytes:
    """(kv_heads, tokens, head_dim) as a row of (kv_heads, head_dim) a token."""
    return _little(layer.swapaxes(0, 1))


def _little(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _neighbours(model: PreTrainedModel) -> bool:
    """Whether the channels of the model's keys are reordered.

    Raises:
        InputError: the architecture or the rotary tables are not known here.
    """
    config, remedy = model.config, "export to safetensors instead, and write the state yourself"
    if config.model_type not in NEIGHBOURS:
        known = ", ".join(NEIGHBOURS)
        raise InputError(
            f"how llama.cpp orders the channels of {config.model_type} is not known here, but of {known}: {remedy}"
        )
    rope = config.rope_parameters.get("rope_type", "default")
    if rope not in ROPES:
        raise InputError(f"llama.cpp may turn keys otherwise than transformers by a rope of the type {rope}: {remedy}")
    turned, width = rotary_tables(model, 0, 1, torch.float32)[0].shape[1], kv_shape(config)[2]
    if NEIGHBOURS[config.model_type] and turned != width:
        raise InputError(
            f"how llama.cpp orders the channels of a {config.model_type} that turns {turned} of {width} is not known: "
            f"{remedy}"
        )
    return NEIGHBOURS[config.model_type]
