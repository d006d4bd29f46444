"""Shapes of the attach benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

QUANTISED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class AttachCase:
    """A memory of ``tokens`` tokens that goes to ``batch`` sequences of a cache with twice as many rows."""

    name: str
    layers: int
    kv_heads: int
    tokens: int
    head_dim: int
    cache: torch.dtype
    memory: torch.dtype
    batch: int = 1
    paged: bool = False

    def tensors(self, device: str) -> dict[str, object]:
        """Arguments of ``lk.attach_kv``."""
        generator = torch.Generator(device).manual_seed(0)
        shape = 2, self.layers, self.kv_heads, self.tokens, self.head_dim
        pair = (torch.randn(shape, generator=generator, device=device) * 20).to(self.memory)
        frequencies = 0.1 ** torch.linspace(0, 4, self.head_dim // 2, device=device)
        angles = torch.arange(self.tokens, device=device)[:, None] * frequencies
        angles = torch.cat((angles, angles), 1)
        arguments = dict(zip(("keys", "values"), pair, strict=True)) | {"cos": angles.cos(), "sin": angles.sin()}
        if self.memory in QUANTISED.values():
            scales = [torch.rand(self.layers, self.kv_heads, n, device=device) + 0.5 for n in shape[:2:-1]]
            arguments |= {"key_scale": scales[0], "value_scale": scales[1]}
        return arguments | self._target(device)

    def _target(self, device: str) -> dict[str, object]:
        rows, heads = 2 * self.tokens, self.kv_heads
        if not self.paged:
            shape = 2, self.layers, self.batch, heads, rows, self.head_dim
            caches = torch.zeros(shape, dtype=self.cache, device=device)
            slots = torch.arange(3, 3 + self.tokens, device=device)
            return {"key_cache": caches[0], "value_cache": caches[1], "slots": slots}
        shape = self.layers, 2, rows // 16, 16, heads, self.head_dim  # vLLM's, of all layers: a graph wants one tensor
        layers = torch.zeros(shape, dtype=self.cache, device=device).transpose(3, 4)
        blocks = torch.randperm(rows // 16, generator=torch.Generator().manual_seed(0)).to(device)
        slots = blocks.repeat_interleave(16) * 16 + torch.arange(16, device=device).repeat(rows // 16)
        pages = {"key_cache": [x[0] for x in layers], "value_cache": [x[1] for x in layers]}
        return pages | {"slots": slots[3 : 3 + self.tokens], "paged": True}

    @property
    def numbers(self) -> int:
        """Keys and values of the memory."""
        return 2 * self.layers * self.kv_heads * self.tokens * self.head_dim

    @property
    def bytes(self) -> int:
        """What has to be read from the memory and written to the caches; tables and scales are not counted."""
        return self.numbers * (self.memory.itemsize + self.batch * self.cache.itemsize)


LLAMA = {"layers": 32, "kv_heads": 8, "head_dim": 128}
GPU_CASES = [
    AttachCase(f"llama-8b-{tokens}-{name}{layout}", tokens=tokens, cache=torch.bfloat16, memory=memory, **LLAMA, **more)
    for tokens in (64, 256, 1024, 4096)
    for name, memory in {"bf16": torch.bfloat16, **QUANTISED}.items()
    for layout, more in {"": {}, "-paged": {"paged": True}}.items()
] + [AttachCase("llama-8b-256-batch-8", tokens=256, cache=torch.bfloat16, memory=torch.bfloat16, batch=8, **LLAMA)]
CPU_CASES = [
    AttachCase("embedded-44", 4, 2, 44, 64, torch.float32, torch.float32),
    AttachCase("embedded-44-batch-8", 4, 2, 44, 64, torch.float32, torch.float32, batch=8),
    *(
        AttachCase(f"llama-8b-256-{name}", tokens=256, cache=torch.bfloat16, memory=memory, **LLAMA)
        for name, memory in {"bf16": torch.bfloat16, **QUANTISED}.items()
    ),
    AttachCase("llama-8b-256-bf16-paged", tokens=256, cache=torch.bfloat16, memory=torch.bfloat16, paged=True, **LLAMA),
]
CPU_TARGET = AttachCase("cpu-target", tokens=256, cache=torch.float32, memory=torch.float32, **LLAMA)
