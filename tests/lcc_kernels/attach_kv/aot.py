"""What the attach kernel needs on GPUs that are not here, over dtypes, head widths and rotations.

    python -m tests.lcc_kernels.attach_kv.aot [--write | --select 90:128:bf16:i8:plain ...]

prints the table as JSON; ``--write`` makes it resources.json. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import re
from pathlib import Path

from triton.compiler import CompiledKernel

from lcc_kernels.attach_kv import triton_kernel
from tests.lcc_kernels.ahead_of_time import build, main
from tests.lcc_kernels.ahead_of_time import resources as resources_of

TABLE = Path(__file__).with_name("resources.json")
CACHES = ("bf16", "fp16", "fp32")
MEMORIES = {"same": None, "i8": "i8", "fp8": "u8", "i4": "u8"}
HEAD_DIMS = (64, 96, 128, 256)
ROTATIONS = {"plain": (1, False), "partial": (2, False), "interleaved": (1, True)}  # head_dim / rotary_dim, pairs
CONFIGS = [
    f"{arch}:{head_dim}:{cache}:{memory}:{rotation}"
    for arch in (80, 90, 100)
    for head_dim in HEAD_DIMS
    for cache in CACHES
    for memory in MEMORIES
    for rotation in ROTATIONS
    if rotation == "plain" or (cache, head_dim) == ("bf16", 128)
]


def strides_of(kernel) -> list[str]:
    """The arguments that are multiplied by an index."""
    return [name for name in kernel.arg_names if re.match("(k|v|kc|vc|ks|vs|slot|cos|sin)_", name)]


def compiled(config: str) -> CompiledKernel:
    """The kernel for a stacked cache, channels side by side in every tensor; scales of packed memories have runs."""
    arch, head_dim, cache, memory, rotation = config.split(":")
    share, interleaved = ROTATIONS[rotation]
    kernel, packed = triton_kernel._attach, memory == "i4"
    width = int(head_dim)
    constants = {
        "HEAD_DIM": width, "ROTARY": width // share, "INTERLEAVED": interleaved, "PACKED": packed, "KEY_RUNS": packed,
        "VALUE_RUN": 32 if packed else width, "ALIGNED": True, "TOKENS": triton_kernel.tokens(width), "table": None,
        "slot_token": 1,
    }  # fmt: skip
    constants |= {name: 1 for name in kernel.arg_names if name.endswith("_channel")}
    pointers = dict.fromkeys(("keys", "values"), f"*{MEMORIES[memory] or cache}")
    pointers |= dict.fromkeys(("key_cache", "value_cache"), f"*{cache}")
    pointers |= {"slots": "*i64", "cos": "*fp32", "sin": "*fp32"}
    if memory == "same":
        constants |= {"key_scale": None, "value_scale": None}
    else:
        pointers |= {"key_scale": "*fp32", "value_scale": "*fp32"}
    strides = [name for name in strides_of(kernel) if name not in constants]
    types = dict.fromkeys(kernel.arg_names, "i32") | pointers
    return build(kernel, types, constants, [*pointers, *strides], int(arch), num_warps=triton_kernel.WARPS)


def resources(config: str) -> dict[str, int]:
    """Registers, spilled bytes, shared memory, and the memory accesses of 16 bytes and of all sizes."""
    built = compiled(config)
    widths = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)", built.asm["ptx"])
    sizes = [int(lanes or 1) * int(bits) for lanes, bits in widths]
    return {**resources_of(built), "wide": sizes.count(128), "accesses": len(sizes)}


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
