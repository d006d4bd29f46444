"""Registers, stack and local memory of a compiled kernel, as cuobjdump reports them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import triton


def cuobjdump() -> str:
    """The one on the path, or the one in Triton's package."""
    own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return shutil.which("cuobjdump") or str(own)


def resource_usage(cubin: bytes, folder: Path) -> dict[str, int]:
    """``REG``, ``STACK``, ``SHARED`` and ``LOCAL`` of the cubin's kernel."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run(
        [cuobjdump(), "--dump-resource-usage", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
