"""What the machine can do at most: the ceilings that all other rows are read beside."""

from __future__ import annotations

from functools import partial

import torch

import lcc_kernels as lk
from benchmarks.common.results_file import Row
from benchmarks.common.timing import copies, replayed_seconds

from .case import Case, Scale, timed

OPS = ("bottleneck_attention", "linear_kl", "attach_kv", "shared_prefix_attention")


def cases(scale: Scale) -> list[Case]:
    """A large copy, a large product of random numbers, and what is there to run."""
    return [
        Case("copy", partial(_copy, scale, 2**20 if scale.tiny else 2**33)),
        Case("product", partial(_product, scale, 64 if scale.tiny else 8192)),
        Case("backends", _backends),
        Case("gpu", partial(_gpu, scale)),
    ]


def _copy(scale: Scale, moved: int) -> Row:
    seconds = replayed_seconds(copies(moved, scale.device), scale.device, rounds=5)
    return {"seconds": seconds, "bytes_per_second": moved / seconds}


def _product(scale: Scale, size: int) -> Row:
    left, right = torch.randn(2, size, size, device=scale.device, dtype=torch.bfloat16)
    return timed(partial(torch.mm, left, right), scale, 2 * size**3)


def _backends() -> Row:
    """The backends that can run; why others cannot, their own cases say."""
    return {op: ", ".join(name for name, lack in lk.available_backends(op).items() if lack is None) for op in OPS}


def _gpu(scale: Scale) -> Row:
    if scale.device != "cuda":
        return {"capability": "none"}
    properties = torch.cuda.get_device_properties()
    return {
        "capability": f"{properties.major}.{properties.minor}", "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
    }  # fmt: skip
