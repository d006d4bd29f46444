"""Attachment in CUDA C++ (``csrc/attach_kv``): addresses of layers travel as kernel arguments, 128 layers a launch."""

from __future__ import annotations

from dataclasses import replace

import torch

from .attachment import Attachment


def attach(a: Attachment) -> None:
    """Write every layer's keys and values to their slots, reading every tensor by its own strides."""
    torch.ops.lcc_kernels_cuda.attach_kv(*prepared(a).arguments)


def prepared(a: Attachment) -> Attachment:
    """The same with scales of four dimensions, as views."""
    key_scale, value_scale = a.scales or (None, None)
    return replace(a, key_scale=key_scale, value_scale=value_scale)


def refuses(a: Attachment) -> str | None:
    """Why the kernel cannot take these arguments, or None."""
    if a.wide == torch.float64:
        return "it computes in float32; float64 runs on backend 'torch'"
    return None if all(x.is_cuda for x in a.tensors) else "its inputs must be CUDA tensors"
