"""What the attach kernel needs on GPUs that are not here, over dtypes, head widths and rotations.

    python -m tests.lcc_kernels.attach_kv.aot [--write | --select 90:128:bf16:i8:plain ...]

prints the table as JSON; ``--write`` makes it resources.json. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import re
from pathlib import Path

from lcc_kernels.attach_kv import triton_kernel
from tests.lcc_kernels.ahead_of_time import build, main
from tests.lcc_kernels.ahead_of_time import resources as resources_of

TABLE = Path(__file__).with_name("resources.json")
CACHES = ("bf16", "fp16", "fp32")
MEMORIES = {"same": None, "i8": "i8", "fp8": "u8"}
HEAD_DIMS = (64, 96, 128, 256)
ROTATIONS = {"plain": (1, False), "partial": (2, False), "interleaved": (1, True)}  # head_dim / rotary_dim, pairs
CONFIGS = [
    f"{arch}:{head_dim}:{cache}:{memory}:{rotation}"
    for arch in (80, 90)
    for head_dim in HEAD_DIMS
    for cache in CACHES
    for memory in MEMORIES
    for rotation in ROTATIONS
    if rotation == "plain" or (cache, head_dim) == ("bf16", 128)
]


def resources(config: str) -> dict[str, int]:
    """Registers, spilled bytes, shared memory, and the memory accesses of 16 bytes and of all sizes."""
    arch, head_dim, cache, memory, rotation = config.split(":")
    share, interleaved = ROTATIONS[rotation]
    kernel, quantised = triton_kernel._attach, MEMORIES[memory] is not None
    constants = {
        "HEAD_DIM": int(head_dim), "ROTARY": int(head_dim) // share, "INTERLEAVED": interleaved, "SCALED": quantised,
        "ALIGNED": True, "TOKENS": triton_kernel.tokens(int(head_dim)), "kc_channel": 1, "vc_channel": 1,
    }  # fmt: skip
    pointers = dict.fromkeys(("keys", "values"), f"*{MEMORIES[memory] or cache}") | {"like": f"*{cache}"}
    pointers |= dict.fromkeys(("key_table", "value_table", "slots"), "*i64") | {"cos": "*fp32", "sin": "*fp32"}
    if quantised:
        pointers |= {"key_scale": "*fp32", "value_scale": "*fp32"}
    else:
        constants |= {"key_scale": None, "value_scale": None}
    strides = [name for name in kernel.arg_names if re.match("(k|v|kc|vc)_", name) and name not in constants]
    types = dict.fromkeys(kernel.arg_names, "i32") | pointers
    built = build(kernel, types, constants, [*pointers, *strides], int(arch), num_warps=triton_kernel.WARPS)
    widths = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)", built.asm["ptx"])
    sizes = [int(lanes or 1) * int(bits) for lanes, bits in widths]
    return {**resources_of(built), "wide": sizes.count(128), "accesses": len(sizes)}


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
