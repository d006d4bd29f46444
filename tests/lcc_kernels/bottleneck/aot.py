"""Compile every kernel for GPUs that are not here, and read what it needs from the cubin.

    python -m tests.lcc_kernels.bottleneck.aot [--write | --select 90:64:bfloat16 ...]

prints the table as JSON; ``--write`` makes it resources.json. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from lcc_kernels.bottleneck import triton_kernel
from lcc_kernels.bottleneck.tiles import tiles
from tests.lcc_kernels.ahead_of_time import build, main
from tests.lcc_kernels.ahead_of_time import resources as resources_of

TABLE = Path(__file__).with_name("resources.json")
HEAD_DIMS = {"bfloat16": (32, 64, 96, 128, 192, 256), "float16": (128,), "float32": (64, 96, 128)}
CONFIGS = [f"{arch}:{size}:{dtype}" for arch in (80, 90) for dtype, sizes in HEAD_DIMS.items() for size in sizes]
POINTERS = {
    "fp32": ("lse", "delta", "partial_k", "partial_v"),
    "i32": ("table", "row_start"),
    "values": ("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"),
}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def resources(config: str) -> dict[str, dict[str, int]]:
    """Kernel name to registers, spilled bytes, shared memory and wgmma instructions."""
    arch, head_dim, dtype = config.split(":")
    sizes = tiles(int(arch), int(head_dim), getattr(torch, dtype))
    kernels = {"_forward": sizes.forward, "_grad_q": sizes.grad_q, "_grad_kv": sizes.grad_kv, "_reduce": sizes.grad_kv}
    found = {}
    for name, tile in kernels.items():
        kernel = getattr(triton_kernel, name)
        constants = triton_kernel.constants(int(head_dim), getattr(torch, dtype), tile)
        found[name] = _compile(kernel, SHORT[dtype], constants, tile, int(arch))
    return found


def _compile(kernel, dtype, constants, tile, arch) -> dict[str, int]:
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: _type(name, dtype) for name in names if name not in constants}
    strides = [name for name in names if re.fullmatch("[gqkv]_(batch|head|row)", name)]
    aligned = strides + [name for name, type_ in types.items() if type_.startswith("*")]
    built = build(kernel, types, constants, aligned, arch, num_warps=tile.warps, num_stages=tile.stages)
    return {**resources_of(built), "wgmma": built.asm["ptx"].count("wgmma.mma_async")}


def _type(name: str, dtype: str) -> str:
    if name == "scale":
        return "fp32"
    for kind, members in POINTERS.items():
        if name in members:
            return "*" + (dtype if kind == "values" else kind)
    return "i32"


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
