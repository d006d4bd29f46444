"""Files that are whole or not there: safetensors with JSON metadata and a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file

from ..errors import MemoryFileError, MismatchError
from .outputs import Rule, replacing
from .safe_json import JSONError, finite_json, parse_json
from .terminal import first_line
from .values import quoted

METADATA_KEY = "lcc"
# What a file is that stands where another kind is wanted, by the beginning of its format.
KINDS = {
    "lcc-memory-": "it is a memory",
    "lcc-delta-": "it is a delta, which lcc apply turns into a memory",
}


@dataclass(frozen=True)
class Stored:
    """What a file holds that ``save_tensors`` wrote, its digest checked.

    Attributes:
        format: its format's name.
        digest: of the tensors and the metadata; see ``content_digest``.
        beside: other texts of its header, which the digest does not cover.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    format: str
    digest: str
    beside: dict[str, str]


def save_tensors(
    path: str | os.PathLike,
    format_name: str,
    tensors: dict[str, torch.Tensor],
    metadata: dict,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``tensors`` and ``metadata`` to ``path`` at once: readers see the old file or the whole new one.

    NaN and infinity in the metadata become null: JSON has no such numbers.

    Args:
        path: an ``Output``, or the path of a file that may be replaced whatever it is.
        beside: other texts for the header, which the digest does not cover.

    Raises:
        MemoryFileError: the folder is missing or read-only, the disk is full, or what is at ``path`` must not be
            replaced, see ``Output``; an older file is left as it was.
        MismatchError: as ``Output.check``.
    """
    tensors, texts = _content(format_name, tensors, metadata)
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, {**beside, **texts})
        except SafetensorError as error:
            # What it says of a full disk, for one.
            raise OSError(str(error)) from error


def file_bytes(format_name: str, tensors: dict[str, torch.Tensor], metadata: dict) -> int:
    """Bytes of the file that ``save_tensors`` would write."""
    return len(save(*_content(format_name, tensors, metadata)))


def _content(
    format_name: str, tensors: dict[str, torch.Tensor], metadata: dict
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata as safetensors takes them."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = finite_json(metadata)
    header = {"format": format_name, "digest": content_digest(tensors, metadata), "metadata": metadata}
    return tensors, {METADATA_KEY: json.dumps(header, sort_keys=True)}


def ours(*format_names: str, **same: Any) -> Rule:
    """The rule of an ``Output`` that replaces files of these formats whose metadata has ``same``."""

    def check(path: Path) -> None:
        metadata = load_tensors(path, *format_names)[1]
        differing = [name for name, value in same.items() if metadata.get(name) != value]
        if differing:
            raise MismatchError(f"{path} is there already and differs in {', '.join(differing)}")

    return check


def load_tensors(
    path: str | os.PathLike, *format_names: str, apart: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the metadata of a file; see ``load_stored``.

    Raises:
        MemoryFileError: as ``load_stored``.
    """
    stored = load_stored(path, *format_names, apart=apart)
    return stored.tensors, stored.metadata


def load_stored(path: str | os.PathLike, *format_names: str, apart: bool = False) -> Stored:
    """Read what ``save_tensors`` wrote in one of the formats ``format_names``, of which the first is the current one.

    Args:
        apart: the tensors are copies. Else they may be the file itself: whoever writes to it in place, rather than
            replacing it, changes them, and whoever cuts it off ends the process.

    Raises:
        MemoryFileError: no such file, a truncated or foreign one, or one whose content does not match its digest.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise MemoryFileError(f"{path} is no regular file: name a file")
    try:
        named, tensors = _copied(path) if apart else _mapped(path)
        raw = named.pop(METADATA_KEY, None)
        if raw is None:
            raise MemoryFileError(f"{path} is a safetensors file, but not one of this package's")
    except FileNotFoundError:
        raise MemoryFileError(f"there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise MemoryFileError(f"{path} is truncated or no safetensors file: {first_line(error)}") from error
    try:
        header = parse_json(raw)
        stored, digest, metadata = header["format"], header["digest"], header["metadata"]
    except JSONError as error:
        raise MemoryFileError(f"{path}: its metadata {error}") from error
    except (KeyError, TypeError) as error:
        raise MemoryFileError(f"{path}: its metadata has no format, digest and metadata: {error}") from error
    if not isinstance(metadata, dict):
        raise MemoryFileError(f"{path}: its metadata is no JSON object")
    if stored not in format_names:
        wanted = format_names[0]
        kind = _kind_of(stored, wanted)
        raise MemoryFileError(f"{path} has format {quoted(stored)!r}; expected {wanted!r}: {kind}")
    if digest != content_digest(tensors, metadata):
        raise MemoryFileError(f"{path} was changed after it was written: its digest does not match; compile it again")
    return Stored(tensors, metadata, stored, digest, named)


def _mapped(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """A file's own metadata and tensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _copied(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """A file's metadata and tensors as they are now."""
    content = Path(path).read_bytes()
    tensors = load(content)
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__") or {}, tensors


def load_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What a file's header says, before its digest is checked; empty if that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = parse_json((file.metadata() or {})[METADATA_KEY])["metadata"]
    except (SafetensorError, OSError, JSONError, KeyError, TypeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def content_digest(tensors: Mapping[str, torch.Tensor], metadata: dict) -> str:
    """SHA-256 of the tensors' bytes and of metadata that JSON can say, in hexadecimal; docs/memory-format.md has it."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, whatever its dtype; of a contiguous one on the CPU no copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _kind_of(stored: object, wanted: str) -> str:
    """A word on a file of another format than ``wanted``."""
    kinds = (said for begun, said in KINDS.items() if str(stored).startswith(begun) and not wanted.startswith(begun))
    return next(kinds, "it may be of another version")
