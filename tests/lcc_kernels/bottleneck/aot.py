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
from tests.lcc_kernels.sass import loop_instructions

TABLE = Path(__file__).with_name("resources.json")
HEAD_DIMS = {"bfloat16": (32, 64, 96, 128, 192, 256), "float16": (128,), "float32": (64, 96, 128)}
CONFIGS = [f"{arch}:{size}:{dtype}" for arch in (80, 90, 100) for dtype, sizes in HEAD_DIMS.items() for size in sizes]
POINTERS = {
    "fp32": ("lse", "delta", "partial_k", "partial_v"),
    "i32": ("table", "row_start"),
    "values": ("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"),
}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
STRIDE = re.compile("[gqkv]_(batch|head|row)")


def resources(config: str) -> dict[str, dict[str, object]]:
    """Kernel name to registers, spilled bytes, shared memory, and the facts of ``_compile``."""
    arch, head_dim, dtype = config.split(":")
    sizes = tiles(int(arch), int(head_dim), getattr(torch, dtype))
    kernels = {"_forward": sizes.forward, "_grad_q": sizes.grad_q, "_grad_kv": sizes.grad_kv, "_reduce": sizes.grad_kv}
    found = {}
    for name, tile in kernels.items():
        kernel = getattr(triton_kernel, name)
        constants = triton_kernel.constants(int(head_dim), getattr(torch, dtype), tile)
        found[name] = _compile(kernel, SHORT[dtype], constants, tile, int(arch))
    return found


def _compile(kernel, dtype, constants, tile, arch) -> dict[str, object]:
    """Beside ``ahead_of_time.resources``: products of a whole warpgroup (wgmma, tcgen05), how float32 products are
    split, uses of strides in fewer than 64 bits, and instructions of a step of each loop."""
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types = {name: _type(name, dtype) for name in names if name not in constants}
    aligned = [name for name, type_ in types.items() if type_.startswith("*") or STRIDE.fullmatch(name)]
    built = build(kernel, types, constants, aligned, arch, num_warps=tile.warps, num_stages=tile.stages)
    strides = [number for number, name in enumerate(types) if STRIDE.fullmatch(name)]
    return {
        **resources_of(built),
        "group_products": len(re.findall(r"wgmma\.mma_async|tcgen05\.mma", built.asm["ptx"])),
        "precision": sorted(set(re.findall(r"inputPrecision = (\w+)", built.asm["ttir"]))),
        "narrow_strides": sum(_narrow_uses(built.asm["ptx"], number) for number in strides),
        "loops": loop_instructions(built.asm["cubin"]),
    }


def _narrow_uses(ptx: str, number: int) -> int:
    """How often parameter ``number``, an int32, enters an instruction whose result is not of 64 bits."""
    (load,) = re.findall(rf"ld\.param\.\w+\s+%(\w+), \[\w+_param_{number}\];", ptx)
    uses = re.findall(rf"^\s*(\S+)\s+%\w+, .*%{load}\b", ptx, re.MULTILINE)
    return 0 if load.startswith("rd") else sum(not re.match(r"cvt\.s64|(mul|mad)\.wide\.s32", use) for use in uses)


def _type(name: str, dtype: str) -> str:
    if name == "scale":
        return "fp32"
    for kind, members in POINTERS.items():
        if name in members:
            return "*" + (dtype if kind == "values" else kind)
    return "i32"


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
