"""What the shared-prefix kernel needs on GPUs that are not here, over dtypes, head widths, tiles and options.

    python -m tests.lcc_kernels.shared_prefix.aot [--write | --select 90:128:bfloat16:64 ...]

prints the table as JSON; ``--write`` makes it resources.json. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from triton.compiler import CompiledKernel

from lcc_kernels.shared_prefix.launch import constants
from lcc_kernels.shared_prefix.plan import Work, most_sequences
from lcc_kernels.shared_prefix.tiles import tiles
from lcc_kernels.shared_prefix.triton_kernel import attention
from tests.lcc_kernels.ahead_of_time import build, main
from tests.lcc_kernels.ahead_of_time import resources as resources_of

TABLE = Path(__file__).with_name("resources.json")
HEAD_DIMS = {"bfloat16": (64, 96, 128, 192, 256), "float16": (128,), "float32": (64, 96, 128)}
SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
MERGED = ("mean_parts", "state_parts", "counters")
EXTRA = ("lse", "entropy", "shared_lengths", "shared_starts", "shared_bias")
KINDS = {"": EXTRA, "whole": (*EXTRA, *MERGED, "own_starts"), "every": ()}  # which pointers are None
CONFIGS = [
    f"{arch}:{head_dim}:{dtype}:{tile.rows}"
    for arch in (80, 90, 100)
    for dtype, head_dims in HEAD_DIMS.items()
    for head_dim in head_dims
    for tile in tiles(arch, head_dim, getattr(torch, dtype))
] + [
    f"{arch}:128:bfloat16:{tile.rows}:{kind}"
    for arch in (80, 90, 100)
    for kind in ("whole", "every")
    for tile in tiles(arch, 128, torch.bfloat16, entropy=kind == "every")
]
DECODING = Work(kv_heads=8, rows=4 * 256, per_sequence=4, shared=2048, own=64)


def compiled(config: str) -> CompiledKernel:
    """The kernel for a configuration, a step of one query in groups of 4.

    ``whole`` is that of tiles that are not split, without own_starts; ``every`` has all options.
    """
    arch, head_dim, dtype, rows, *kind = config.split(":")
    torch_dtype = getattr(torch, dtype)
    tile = next(tile for tile in tiles(int(arch), int(head_dim), torch_dtype) if tile.rows == int(rows))
    fixed: dict = constants(int(head_dim), torch_dtype, tile, most_sequences(tile, DECODING))
    fixed |= dict.fromkeys(KINDS["".join(kind)])
    pointers = dict.fromkeys(("q", "shared_k", "shared_v", "own_k", "own_v", "out"), f"*{SHORT[dtype]}")
    pointers |= dict.fromkeys((*MERGED[:2], "lse", "entropy", "shared_bias"), "*fp32") | {"counters": "*i32"}
    pointers |= dict.fromkeys(("own_lengths", "own_starts", "shared_lengths", "shared_starts"), "*i64")
    strides = [name for name in attention.arg_names if re.fullmatch("(q|sk|sv|k|v)_(batch|head|row)", name)]
    types = dict.fromkeys(attention.arg_names, "i32") | pointers | {"scale": "fp32"}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    aligned = [name for name in (*pointers, *strides) if name not in fixed]
    return build(attention, types, fixed, aligned, int(arch), **options)


def resources(config: str) -> dict[str, int]:
    """Registers, spilled bytes, shared memory, and asynchronous copies and warpgroup products in the PTX."""
    built = compiled(config)
    products = "tcgen05.mma" if config.startswith("100") else "wgmma.mma_async"
    copies, wide = (built.asm["ptx"].count(name) for name in ("cp.async.cg.shared", products))
    return {**resources_of(built), "copies": copies, "warpgroup": wide}


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
