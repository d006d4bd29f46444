"""Codes: the numbers of quantised K and V. Scales turn them into what the model reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

import lcc_kernels as lk

from ..modeling.kv import KV


@dataclass(frozen=True)
class Codes:
    """A format of codes, each from -``largest`` to ``largest``.

    Attributes:
        dtype: of a tensor of them.
        scales: the dtype of the scales.
        key_group: neighbouring tokens whose keys share a scale, from the first token on; None: all of them.
    """

    dtype: torch.dtype
    largest: float
    scales: torch.dtype = torch.float32
    key_group: int | None = None

    @property
    def packed(self) -> bool:
        """Whether a byte holds two neighbouring channels, as ``lk.pack_int4`` puts them."""
        return self.dtype == torch.uint8

    def key_scales(self, dims: tuple[int, int, int, int]) -> tuple[int, ...]:
        """The shape of the keys' scales; ``dims`` are (layers, kv_heads, K, head_dim)."""
        layers, heads, tokens, width = dims
        return layers, heads, *(() if self.key_group is None else (math.ceil(tokens / self.key_group),)), width

    def numbers(self, kv: KV, key_scale: torch.Tensor, value_scale: torch.Tensor, dtype: torch.dtype) -> KV:
        """Codes as K and V in ``dtype``, multiplied by their scales."""
        keys, values = (lk.unpack_int4(x) if self.packed else x for x in (kv.keys, kv.values))
        if self.key_group is None:
            spread = key_scale[:, :, None]
        else:
            spread = key_scale.repeat_interleave(self.key_group, 2)[:, :, : len(kv)]
        return KV(keys.to(dtype) * spread, values.to(dtype) * value_scale[..., None], kv.start)


def kv_bytes(dims: tuple[int, int, int, int], form: torch.dtype | Codes) -> int:
    """Bytes of K and V, float ones or codes with their scales; ``dims`` are (layers, kv_heads, K, head_dim)."""
    numbers = 2 * math.prod(dims)
    if isinstance(form, torch.dtype):
        return numbers * form.itemsize
    scales = math.prod(form.key_scales(dims)) + math.prod(dims[:3])
    return (numbers // 2 if form.packed else numbers) + scales * form.scales.itemsize


# Keys of int4 have a scale for each 32 tokens: one for all would cost half as much again in a memory of some hundred
# tokens (benchmarks/log). So many scales take two bytes each.
FORMATS = {
    "int8": Codes(torch.int8, 127.0),
    "fp8": Codes(torch.float8_e4m3fn, 448.0),
    "int4": Codes(torch.uint8, 7.0, torch.bfloat16, 32),
}
# The formats by what tells them in a file.
BY_DTYPE = {codes.dtype: codes for codes in FORMATS.values()}
