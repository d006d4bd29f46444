"""Files that are whole or not there: safetensors with JSON metadata, a digest, and an atomic replace."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .errors import MemoryFileError
from .safe_json import JSONError, finite_json, parse_json
from .terminal import first_line
from .values import quoted

METADATA_KEY = "lcc"
PARTIAL = ".partial"


def write_tensors(path: str | os.PathLike, format_name: str, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    """Write ``tensors`` and ``metadata`` to ``path`` at once: readers see the old file or the whole new one.

    NaN and infinity in the metadata become null: JSON has no such numbers.

    Raises:
        MemoryFileError: the folder is missing or read-only, or the disk is full; an older file is left as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = finite_json(metadata)
    header = {"format": format_name, "digest": _digest(tensors, metadata), "metadata": metadata}
    with _replacing(Path(path)) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: json.dumps(header, sort_keys=True)})


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Put ``content`` in place of the file at ``path``, at once.

    Raises:
        MemoryFileError: as ``write_tensors`` does.
    """
    with _replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the place of ``path`` when the block ends well."""
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MemoryFileError(f"cannot write {path}: {reason}; nothing was changed there") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_partial(path: Path) -> None:
    """Delete what writers of ``path`` that were killed have left beside it; nobody may be writing it now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        left.unlink(missing_ok=True)


def read_tensors(path: str | os.PathLike, format_name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote.

    Raises:
        MemoryFileError: no such file, a truncated or foreign one, or one whose content does not match its digest.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise MemoryFileError(f"{path} is no regular file: name a file")
    try:
        with safe_open(path, framework="pt") as file:
            raw = (file.metadata() or {}).get(METADATA_KEY)
            if raw is None:
                raise MemoryFileError(f"{path} is a safetensors file, but not one of this package's")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise MemoryFileError(f"there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        raise MemoryFileError(f"{path} is truncated or no safetensors file: {first_line(error)}") from error
    try:
        header = parse_json(raw)
        found, digest, metadata = header["format"], header["digest"], header["metadata"]
    except JSONError as error:
        raise MemoryFileError(f"{path}: its metadata {error}") from error
    except (KeyError, TypeError) as error:
        raise MemoryFileError(f"{path}: its metadata has no format, digest and metadata: {error}") from error
    if not isinstance(metadata, dict):
        raise MemoryFileError(f"{path}: its metadata is no JSON object")
    if found != format_name:
        raise MemoryFileError(f"{path} has format {quoted(found)!r}; expected {format_name!r}")
    if digest != _digest(tensors, metadata):
        raise MemoryFileError(f"{path} was changed after it was written: its digest does not match; compile it again")
    return tensors, metadata


def _digest(tensors: dict[str, torch.Tensor], metadata: dict) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The raw bytes of a tensor, whatever its dtype; of a contiguous one on the CPU no copy."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
