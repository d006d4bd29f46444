"""The optional CUDA library: ``csrc/`` on torch's stable ABI, built by ``setup.py`` or at first use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from .dispatch import setting
from .gpu import gpu_missing
from .jit import BuildError, built_library

PATH = Path(__file__).with_name("_C.so")
ABI = 4  # as in csrc/bindings.cpp; both rise when an op's signature changes
REMEDY = (
    "build it where nvcc and a CUDA torch are installed: pip install --no-build-isolation --force-reinstall "
    "--no-deps . in a checkout, or LCC_KERNELS_JIT=1 to build at first use"
)


def cuda_missing() -> str | None:
    """Why the CUDA kernels cannot run here, or None."""
    return gpu_missing() or library_missing()


@cache
def library_missing() -> str | None:
    """Load the library, once it is built if it is to be built at first use; why that failed, or None."""
    if PATH.exists() or setting("LCC_KERNELS_JIT") != "1":
        return load_failure(PATH)
    try:
        return load_failure(built_library())
    except BuildError as error:
        return str(error)


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
