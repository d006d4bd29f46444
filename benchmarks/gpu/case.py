"""A case is a row to be: a name, and a function that measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isnan

import torch

import lcc_kernels as lk
from benchmarks.common.results_file import Row
from benchmarks.common.timing import queued_seconds

# Relative norm of what a kernel may be off by from float64: operands, products and results are rounded to the dtype.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


class Refused(Exception):
    """A case cannot run here; the message says why."""


@dataclass(frozen=True)
class Scale:
    """What cases are built for: a device, and ``tiny`` sizes that show within a second that a case can be run."""

    device: str
    tiny: bool

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """Half precisions; Triton's interpreter, where tiny cases run, has no bfloat16."""
        return (torch.float16,) if self.tiny else (torch.bfloat16, torch.float16)


FULL, TINY = Scale("cuda", False), Scale("cpu", True)


@dataclass(frozen=True)
class Case:
    """``measure`` returns the figures of a row.

    It raises ``Refused`` or ``BackendUnavailableError`` where the case cannot run.
    """

    name: str
    measure: Callable[[], Row]


def backends(op: str, scale: Scale) -> list[str]:
    """The backends of ``op`` that are measured; on a GPU not ``torch``, which is a fallback there."""
    left_out = {"reference"} if scale.tiny else {"reference", "torch"}
    return [name for name in lk.available_backends(op) if name not in left_out]


def short(dtype: torch.dtype) -> str:
    """The dtype's name in a case's name."""
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm, in float64; NaN where either has one."""
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def verdict(errors: Mapping[str, float], limit: float) -> Row:
    """Passed if no error, of which NaN is one, exceeds ``limit``."""
    worst = max(errors.values(), key=lambda error: inf if isnan(error) else error)
    passed = all(error <= limit for error in errors.values())
    return {"passed": passed, "error": worst, "limit": limit, "errors": dict(errors)}


def timed(call: Callable[[], object], scale: Scale, flops: int) -> Row:
    """Seconds of a call that keeps the device busy for longer than the host, and operations a second."""
    seconds = queued_seconds(call, scale.device)
    return {"seconds": seconds.device, "host_seconds": seconds.host, "tflops": flops / seconds.device / 1e12}
