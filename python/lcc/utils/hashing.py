"""Digests: of a text, of a file, of what JSON can say, and of a tensor's numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MemoryFileError, MismatchError

# Words in a row, and rows that are hashed at once: on a CPU as many as stay in its cache.
ROW = 1 << 15
CPU_ROWS, OTHER_ROWS = 1 << 3, 1 << 9


def text_digest(text: str) -> str:
    """SHA-256 of the text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def texts_digest(digests: Iterable[str]) -> str:
    """Of texts that a memory took in one after another, given the digest of each."""
    return reduce(lambda before, own: text_digest(before + own), digests)


def file_digest(path: str | os.PathLike, expected: str | None = None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        MemoryFileError: the file cannot be read.
        MismatchError: the digest is not the expected one.
    """
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise MemoryFileError(f"cannot read {path}: {error.strerror}") from error
    if expected not in (None, digest):
        raise MismatchError(f"{path} is not the file that it was: its digest is {digest}")
    return digest


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON-ready value, in hexadecimal; the order of keys does not count."""
    return text_digest(json.dumps(value, sort_keys=True))


def tensor_digest(tensor: torch.Tensor) -> bytes:
    """SHA-256 over a tensor's shape and numbers.

    Floats that float32 can hold are hashed as float32, so that the same numbers have one digest in every float dtype;
    other tensors by dtype and bytes. Of each row of 2^15 words of 32 bits, SHA-256 gets the sum of the words, each
    times an odd 64-bit number of its own, modulo 2^64: integers alone, so that every device finds the same. One changed
    number, two that were exchanged and two changed signs are always noticed, any other accident but for a chance of
    2^-33 at most. It is no signature.
    """
    flat = tensor.detach().reshape(-1)
    part_size = ROW * (CPU_ROWS if flat.device.type == "cpu" else OTHER_ROWS)
    single = all(map(_is_single, flat.split(part_size)))
    digest = hashlib.sha256(f"{'float' if single else flat.dtype} {tuple(tensor.shape)}".encode())
    if not single:
        flat = _as_words(flat)
    multipliers = torch.from_numpy(_multipliers()).to(flat.device)
    scratch = torch.empty(part_size, dtype=torch.int64, device=flat.device)
    sums = []
    for part in flat.split(part_size):
        rows = scratch[: len(part) + -len(part) % ROW]
        rows[: len(part)] = part.float().view(torch.int32) if single else part
        rows[len(part) :] = 0
        sums.append(rows.view(len(rows) // ROW, ROW).mul_(multipliers).sum(1))
    digest.update(torch.cat(sums).cpu().numpy().astype("<i8").tobytes())
    return digest.digest()


def _is_single(part: torch.Tensor) -> bool:
    """Whether float32 holds these numbers."""
    if part.dtype == torch.float64:
        return torch.equal(part.float().double().view(torch.int64), part.view(torch.int64))
    return part.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _as_words(flat: torch.Tensor) -> torch.Tensor:
    """The bytes as int32."""
    flat = flat.view(torch.uint8)
    if len(flat) % 4:
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % 4))
    return flat.view(torch.int32)


@lru_cache
def _multipliers() -> np.ndarray:
    """(ROW,) odd int64: the same on every machine, for ever."""
    return np.frombuffer(hashlib.shake_256(b"lcc").digest(8 * ROW), dtype="<i8") | 1
