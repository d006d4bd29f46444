"""What the row kernel needs on GPUs that are not here, over dtypes and losses.

    python -m tests.lcc_kernels.linear_kl.aot [--write | --select 90:bf16:forward:plain ...]

prints the table as JSON; ``--write`` makes it resources.json. Not under TRITON_INTERPRET.
"""

from __future__ import annotations

from pathlib import Path

from triton.compiler import CompiledKernel

from lcc_kernels.linear_kl import triton_kernel
from lcc_kernels.linear_kl.options import KINDS, SHAPES
from tests.lcc_kernels.ahead_of_time import build, main
from tests.lcc_kernels.ahead_of_time import resources as resources_of
from tests.lcc_kernels.sass import count, innermost_loops, instructions_a_pair

TABLE = Path(__file__).with_name("resources.json")
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
VOCAB = 128256
CONFIGS = [
    f"{arch}:{dtype}:{kind}:{shape}"
    for arch in (80, 90, 100)
    for dtype in ITEMSIZE
    for kind in KINDS
    for shape in SHAPES
    if shape == "plain" or (dtype == "bf16" and (shape == "capped" or kind == "forward"))
]


def compiled(config: str) -> CompiledKernel:
    """The kernel for a configuration, weighted and with a gradient."""
    arch, dtype, kind, shape = config.split(":")
    kernel, size = triton_kernel.row_kernel, triton_kernel.tile(VOCAB, ITEMSIZE[dtype])
    pointers = {"student": f"*{dtype}", "teacher": f"*{dtype}", "loss": "*fp32", "row_weight": "*fp32"}
    types = pointers | dict.fromkeys(("student_stride", "teacher_stride", "vocab"), "i32")
    types |= dict.fromkeys(("inner", "scale", "factor", "beta"), "fp32")
    constants = {
        "KIND": kind, "SHAPE": shape, "WEIGHTED": True, "WITH_GRAD": True,
        "LANES": size.lanes, "WIDTH": size.width,
    }  # fmt: skip
    aligned = "student", "teacher", "loss", "student_stride", "teacher_stride"
    return build(kernel, types, constants, aligned, int(arch), num_warps=size.num_warps)


def resources(config: str) -> dict[str, object]:
    """Registers, spilled bytes, shared memory; the sweeps' instructions a logit pair, barriers and narrow accesses."""
    built, itemsize = compiled(config), ITEMSIZE[config.split(":")[1]]
    (loops,) = innermost_loops(built.asm["cubin"]).values()
    sweeps = [loop for loop in loops if count(loop, "LDG")]
    return {
        **resources_of(built),
        "instructions": [instructions_a_pair(loop, itemsize) for loop in sweeps],
        "barriers": sum(count(loop, "BAR") for loop in sweeps),
        "narrow": sum(count(loop, r"LD[GSL]|ST[GSL]") - count(loop, r"(LDG|STG)\.E\.128") for loop in sweeps),
    }


if __name__ == "__main__":
    main(__doc__, TABLE, CONFIGS, resources)
