"""Smaller memories: int8 or fp8 K and V."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import InputError, MismatchError
from ..modeling.kv import KV
from ..utils.outputs import Output
from ..utils.values import check, require
from .memory import Memory
from .payload import KVPayload

# The dtype of each format, and its largest number.
FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


def check_request(memory: Memory, dtype: str, answers: int) -> None:
    """Refuse what cannot be quantised, or measured.

    Raises:
        InputError: an unknown dtype, no answers to measure with, or a memory that is quantised already.
    """
    if dtype not in FORMATS:
        raise InputError(f"unknown dtype {dtype!r}; there are {', '.join(FORMATS)}")
    check("answers", answers, int)
    require(answers >= 1, "answers", answers, "at least 1: on them quantising is measured")
    if memory.quantized:
        raise InputError(f"the memory is {memory.dtype} already: quantise the float memory that it was made from")


def quantized_output(path: Path, memory: Memory, inputs: Iterable[Path] = (), force: bool = False) -> Output:
    """The file that a quantised ``memory`` goes to: it replaces quantised memories of the same text."""

    def quantized_one(path: Path) -> None:
        stored = Memory.load(path)
        if stored.source_sha256 != memory.source_sha256 or not stored.quantized:
            raise MismatchError(f"{path} is there already, and is no quantised memory of the same text")

    return Output(path, tuple(inputs), force, quantized_one)


def quantize_payload(payload: KVPayload, dtype: str) -> KVPayload:
    """Float K and V as ``int8`` or ``fp8`` (e4m3), symmetric, rounded to the nearest.

    Keys have a scale for each head and channel over all tokens, because their large channels before rotation are the
    same at every token (KVQuant, arXiv 2401.18079, section 3). Values have a scale for each head and token (KIVI, arXiv
    2402.02750).
    """
    kv = payload.kv
    target, largest = FORMATS[dtype]
    key_scale, value_scale = _scale(kv.keys, 2, largest), _scale(kv.values, 3, largest)
    keys = _round(kv.keys.float() / key_scale[:, :, None], target, largest)
    values = _round(kv.values.float() / value_scale[..., None], target, largest)
    return KVPayload(KV(keys, values), key_scale, value_scale)


def _scale(x: torch.Tensor, dim: int, largest: float) -> torch.Tensor:
    scale = x.float().abs().amax(dim) / largest
    return torch.where(scale > 0, scale, 1.0)


def _round(x: torch.Tensor, dtype: torch.dtype, largest: float) -> torch.Tensor:
    """To the nearest number of ``dtype``; the cast of a float8 rounds by itself."""
    return (x.round() if dtype == torch.int8 else x).clamp(-largest, largest).to(dtype)
