"""What the shared-prefix kernel needs on GPUs that are not here, over dtypes, head widths and tiles.

    python -m tests.lcc_kernels.shared_prefix.aot [--write | --select 90:128:bfloat16:64 ...]

prints the table as JSON; ``--write`` makes it resources.json. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from lcc_kernels.shared_prefix import triton_kernel
from lcc_kernels.shared_prefix.tiles import tiles
from tests.lcc_kernels.ahead_of_time import build, main
from tests.lcc_kernels.ahead_of_time import resources as resources_of

TABLE = Path(__file__).with_name("resources.json")
HEAD_DIMS = {"bfloat16": (64, 96, 128, 192, 256), "float16": (128,), "float32": (64, 96, 128)}
PARTS = ("mean_parts", "peak_parts", "mass_parts")
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
CONFIGS = [
    f"{arch}:{head_dim}:{dtype}:{tile.rows}"
    for arch in (80, 90)
    for dtype, head_dims in HEAD_DIMS.items()
    for head_dim in head_dims
    for tile in tiles(arch, head_dim, getattr(torch, dtype))
] + ["80:128:bfloat16:64:whole", "90:128:bfloat16:64:whole"]


def resources(config: str) -> dict[str, int]:
    """Registers, spilled bytes, shared memory, and asynchronous copies and wgmma instructions in the PTX.

    ``whole`` is the kernel of tiles that are not split, here with neither own_starts nor groups.
    """
    arch, head_dim, dtype, rows, *whole = config.split(":")
    kernel, kind = triton_kernel._forward, getattr(torch, dtype)
    tile = next(tile for tile in tiles(int(arch), int(head_dim), kind) if tile.rows == int(rows))
    constants = triton_kernel.constants(int(head_dim), kind, tile)
    if whole:
        constants |= dict.fromkeys((*PARTS, "counters", "own_starts")) | {"group": 1}
    pointers = dict.fromkeys(("q", "shared_k", "shared_v", "own_k", "own_v", "out"), f"*{SHORT[dtype]}")
    pointers |= dict.fromkeys(PARTS, "*fp32")
    pointers |= {"own_lengths": "*i64", "own_starts": "*i64", "counters": "*i32"}
    strides = [name for name in kernel.arg_names if re.fullmatch("(q|sk|sv|k|v)_(batch|head|row)", name)]
    types = dict.fromkeys(kernel.arg_names, "i32") | pointers | {"scale": "fp32"}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    aligned = [name for name in (*pointers, *strides) if name not in constants]
    built = build(kernel, types, constants, aligned, int(arch), **options)
    copies, wgmma = (built.asm["ptx"].count(name) for name in ("cp.async.cg.shared", "wgmma.mma_async"))
    return {**resources_of(built), "copies": copies, "wgmma": wgmma}


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
