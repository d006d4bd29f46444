"""The optional CUDA library: ``csrc/`` on torch's stable ABI, built by ``setup.py``."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from .gpu import gpu_missing

PATH = Path(__file__).with_name("_C.so")
ABI = 2  # as in csrc/bindings.cpp; both rise when an op's signature changes
REMEDY = (
    "build it where nvcc and a CUDA torch are installed: pip install --no-build-isolation --force-reinstall --no-deps ."
)


def cuda_missing() -> str | None:
    """Why the CUDA kernels cannot run here, or None."""
    return gpu_missing() or load_failure(PATH)


@cache
def load_failure(path: Path) -> str | None:
    """Load the library; why that failed and how to build it, or None."""
    if not path.exists():
        return f"{path.name} is not built; {REMEDY}"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load with torch {torch.__version__} ({error.__cause__ or error}); {REMEDY}"
    abi = torch.ops.lcc_kernels_cuda.abi()
    if abi != ABI:
        return f"{path.name} has ABI {abi} where this version needs {ABI}; {REMEDY}"
    return None
