"""The tile of an attention kernel in Triton, and the machine that it is chosen for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .dispatch import interpreting

INTERPRETER = 0  # the architecture of Triton's interpreter


@dataclass(frozen=True)
class Tile:
    """A program's rows of queries and of keys, its warps, and how many loads it keeps in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


def architecture(device: torch.device) -> int:
    """Compute capability of a GPU as one number (80, 90, ...), ``INTERPRETER`` under Triton's interpreter."""
    if interpreting():
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
