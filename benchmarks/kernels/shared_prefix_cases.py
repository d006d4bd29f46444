"""The batches that the shared-prefix benchmarks run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Tensors:
    """Arguments of ``lk.shared_prefix_attention``, in order."""

    q: torch.Tensor
    shared_k: torch.Tensor
    shared_v: torch.Tensor
    own_k: torch.Tensor
    own_v: torch.Tensor
    own_lengths: torch.Tensor

    @property
    def arguments(self) -> tuple[torch.Tensor, ...]:
        return self.q, self.shared_k, self.shared_v, self.own_k, self.own_v, self.own_lengths

    def replicated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (batch, kv_heads, shared + own, head_dim), the prefix copied in front of each sequence."""
        pairs = (self.shared_k, self.own_k), (self.shared_v, self.own_v)
        keys, values = (torch.cat([shared.expand(len(own), -1, -1, -1), own], 2) for shared, own in pairs)
        return keys, values


@dataclass(frozen=True)
class DecodeCase:
    """A step of ``batch`` sequences, ``q_len`` queries each, that own half of ``own`` to ``own`` rows."""

    model: str
    batch: int
    shared: int
    own: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    q_len: int = 1

    @property
    def name(self) -> str:
        return f"{self.model} {self.batch}x{self.q_len} {self.shared}+{self.own}"

    @cached_property
    def lengths(self) -> list[int]:
        return torch.linspace((self.own + 1) // 2, self.own, self.batch).long().tolist()

    def tensors(self, device: str) -> Tensors:
        generator = torch.Generator(device).manual_seed(0)
        shared = self.kv_heads, self.shared, self.head_dim
        own = self.batch, self.kv_heads, self.own, self.head_dim
        shapes = (self.batch, self.heads, self.q_len, self.head_dim), shared, shared, own, own
        made = (torch.randn(shape, generator=generator, device=device).to(self.dtype) for shape in shapes)
        return Tensors(*made, own_lengths=torch.tensor(self.lengths, device=device))

    @property
    def least_bytes(self) -> int:
        """Each query, key, value and output moved once."""
        rows = 2 * self.kv_heads * (self.shared + sum(self.lengths)) + 2 * self.batch * self.heads * self.q_len
        return rows * self.head_dim * self.dtype.itemsize


def _embedded(batch: int, shared: int, own: int) -> DecodeCase:
    """A layer of the embedded model."""
    return DecodeCase("embedded", batch, shared, own, 4, 2, 64, torch.float32)


def _llama(batch: int, shared: int, own: int, q_len: int = 1, dtype: torch.dtype = torch.bfloat16) -> DecodeCase:
    """A layer of Llama-3.1-8B."""
    return DecodeCase("8b", batch, shared, own, 32, 8, 128, dtype, q_len)


CPU_TARGET = _embedded(32, 360, 40)
CPU_CASES = [
    *(_embedded(batch, shared, own) for batch in (8, 32) for shared in (44, 360) for own in (20, 60)),
    _llama(32, 1024, 64, dtype=torch.float32),
]
# What an entropy is asked of: decode steps of one sequence, over own keys alone and over a memory too, and of batches.
ENTROPY_CASES = [
    *(_embedded(1, shared, own) for shared, own in ((0, 64), (0, 512), (0, 4096), (400, 60), (4096, 64))),
    *(_embedded(32, shared, own) for shared, own in ((44, 20), (360, 40), (4096, 64))),
    *(_llama(1, 0, own, dtype=torch.float32) for own in (512, 8192)),
    _llama(32, 1024, 64, dtype=torch.float32),
]
GPU_CASES = [
    *(
        _llama(batch, shared, own)
        for batch in (1, 8, 32, 128, 256)
        for shared in (128, 512, 2048, 8192)
        for own in (1, 64, 2048)
        if batch * (shared + own) <= 2**20  # the peers' replicas fit
    ),
    _llama(32, 2048, 64, q_len=4),
    _llama(8, 2048, 64, q_len=16),
]
