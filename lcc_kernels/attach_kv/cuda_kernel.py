"""Attachment in CUDA C++ (``csrc/attach_kv``): addresses of layers travel as kernel arguments, 128 layers a launch."""

from __future__ import annotations

import torch

from .attachment import Attachment


def attach(a: Attachment) -> None:
    """Write every layer's keys and values to their slots."""
    torch.ops.lcc_kernels_cuda.attach_kv(*a.for_kernels().arguments)


def refuses(a: Attachment) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if a.wide == torch.float64:
        return "it computes in float32; float64 runs on backend 'torch'"
    return None if all(x.is_cuda for x in a.tensors) else "its inputs must be CUDA tensors"
