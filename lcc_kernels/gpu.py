"""Which GPUs the package's own kernels, in Triton and in CUDA, run on."""

from __future__ import annotations

from functools import cache

import torch

# First numbers of compute capabilities, from Ampere to Blackwell. Tiles are known to compile for all of them.
OLDEST, NEWEST = 8, 12


@cache
def gpu_missing() -> str | None:
    """Why no GPU of this machine can run the kernels, or None if one can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    reasons = [gpu_refusal(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@cache
def gpu_refusal(index: int) -> str | None:
    """Why CUDA device ``index`` cannot run the kernels, or None."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and the kernels are for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(index)
    if OLDEST <= major <= NEWEST:
        return None
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {major}.{minor}, "
        f"and the kernels are for {OLDEST}.0 to {NEWEST}.x"
    )
