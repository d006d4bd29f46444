"""The shapes that the benchmarks run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lcc_kernels import BottleneckLayout

PREFIX = 5


@dataclass(frozen=True)
class AttentionCase:
    """One packed row and the heads that attend over it."""

    name: str
    layout: BottleneckLayout
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def tensors(self, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random q, k and v that require gradients."""
        generator = torch.Generator().manual_seed(0)
        shapes = [(1, heads, self.layout.total, self.head_dim) for heads in (self.heads, self.kv_heads, self.kv_heads)]
        made = (torch.randn(shape, generator=generator).to(device, self.dtype) for shape in shapes)
        return tuple(tensor.requires_grad_() for tensor in made)  # type: ignore[return-value]

    def pairs(self) -> int:
        """Visible (row, key) pairs."""
        start, stop, shared_start, shared_stop = self.layout.spans.unbind(-1)
        rows = stop - start
        return int((rows * (rows + 1) // 2 + rows * (shared_stop - shared_start)).sum())

    def flops(self, direction: str) -> int:
        """Active operations: two products forward, five backward, invisible pairs not counted."""
        products = {"fwd": 2, "bwd": 5}[direction]
        return 2 * products * self.head_dim * self.heads * self.pairs()


def bottleneck_row(context: int, buffer: int, short: int) -> BottleneckLayout:
    """A training row: the reconstruction segment, as long as the context, and 32 queries of ``short`` tokens."""
    return BottleneckLayout(PREFIX, context, buffer, (context, *[short] * 32))


def _gpu_case(model: str, heads: int, context: int, short: int) -> AttentionCase:
    layout = bottleneck_row(context, context // 16, short)
    return AttentionCase(f"{model}-{context // 1024}k-32x{short}", layout, heads, 8, 128, torch.bfloat16)


CPU_TARGET = AttentionCase("cpu-target-4k", bottleneck_row(4096, 256, 64), 8, 2, 64, torch.float32)
CPU_CASES = [
    AttentionCase("cpu-512", bottleneck_row(512, 32, 16), 8, 2, 64, torch.float32),
    AttentionCase("cpu-1k", bottleneck_row(1024, 64, 32), 8, 2, 64, torch.float32),
]
GPU_CASES = [
    _gpu_case(model, heads, context, short)
    for model, heads in (("llama-3.1-8b", 32), ("qwen3-4b", 32))
    for context in (2048, 8192, 32768, 65536)
    for short in (64, 256)
]
