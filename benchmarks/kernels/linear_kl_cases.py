"""Shapes of the linear KL benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HeadCase:
    """``rows`` supervised tokens behind an lm_head (vocab, hidden)."""

    name: str
    rows: int
    hidden: int
    vocab: int
    dtype: torch.dtype

    def tensors(self, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Student, which wants a gradient, and teacher (rows, hidden), weight (vocab, hidden)."""
        generator = torch.Generator(device).manual_seed(0)
        shapes = (self.rows, self.hidden), (self.rows, self.hidden), (self.vocab, self.hidden)
        student, teacher, weight = (torch.randn(s, generator=generator, device=device).to(self.dtype) for s in shapes)
        return student.requires_grad_(), teacher, weight * self.hidden**-0.5

    @property
    def flops(self) -> int:
        """The three GEMMs that a frozen head needs: two logits and one gradient."""
        return 3 * 2 * self.rows * self.hidden * self.vocab


MODELS = {"llama-3.1-8b": (4096, 128256), "qwen3-4b": (2560, 151936), "gemma": (3584, 256000)}
GPU_CASES = [
    HeadCase(f"{name}-{rows}", rows, *shape, torch.bfloat16)
    for name, shape in MODELS.items()
    for rows in (256, 1024, 8192, 32768)
]
CPU_CASES = [
    HeadCase("embedded-300", 300, 128, 783, torch.float32),
    HeadCase("small-64", 64, 256, 8192, torch.float32),
    HeadCase("llama-vocabulary-128", 128, 256, 128256, torch.float32),
]
CPU_TARGET = HeadCase("cpu-target", 2048, 512, 128256, torch.float32)
ROW_KERNEL = HeadCase("row-kernel", 1024, 4096, 128256, torch.bfloat16)
