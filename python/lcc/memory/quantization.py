"""Smaller memories: K and V as int8, fp8 or int4."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

import lcc_kernels as lk

from ..errors import InputError, MismatchError
from ..modeling.kv import KV
from ..utils.outputs import Output
from ..utils.values import check, require
from .codes import FORMATS, Codes
from .memory import Memory
from .payload import KVPayload


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
    """Float K and V as ``int8``, ``fp8`` (e4m3) or ``int4``, symmetric, rounded to the nearest.

    Keys have a scale for each head and channel over all tokens, because their large channels before rotation are the
    same at every token (KVQuant, arXiv 2401.18079, section 3); of int4 over each 32 tokens. Values have a scale for
    each head and token (KIVI, arXiv 2402.02750).

    Raises:
        InputError: head_dim is odd, and int4 puts two channels into a byte.
    """
    kv, codes = payload.kv, FORMATS[dtype]
    if codes.packed and payload.dims[3] % 2:
        raise InputError(f"head_dim is {payload.dims[3]}, and int4 puts two channels into a byte: take int8 or fp8")
    groups = [_rounded(part.float(), 2, codes) for part in kv.keys.split(codes.key_group or len(kv), 2)]
    keys, key_scale = (torch.cat(parts, 2) for parts in zip(*groups, strict=True))
    values, value_scale = _rounded(kv.values.float(), 3, codes)
    if codes.packed:
        keys, values = lk.pack_int4(keys), lk.pack_int4(values)
    return KVPayload(KV(keys, values), key_scale.view(codes.key_scales(payload.dims)), value_scale.squeeze(3))


def _rounded(x: torch.Tensor, dim: int, codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, not packed, and their scales: one over all of ``dim``, which is kept."""
    scale = (x.abs().amax(dim, keepdim=True) / codes.largest).to(codes.scales)
    scale = torch.where(scale > 0, scale, 1.0)
    numbers = (x / scale).clamp(-codes.largest, codes.largest)
    # The cast to a float8 rounds by itself.
    return numbers.to(codes.dtype) if codes.dtype.is_floating_point else numbers.round().to(torch.int8), scale
