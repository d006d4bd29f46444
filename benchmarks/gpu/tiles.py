"""Tiles of bottleneck attention's Triton kernels, beside those that ``tiles`` chooses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch

import lcc_kernels as lk
from benchmarks.common.results_file import Row
from benchmarks.kernels.bottleneck_cases import AttentionCase, bottleneck_row
from lcc_kernels.bottleneck.tiles import Tiles, tiles
from lcc_kernels.dispatch import interpreting
from lcc_kernels.tiles import architecture

from .case import TOLERANCES, Case, Refused, Scale, relative_error, timed, verdict

BACKEND = "triton"


@dataclass(frozen=True)
class Candidate:
    """A tile of one kernel, by the field of ``Tiles``; its warps stay those of the chosen one."""

    kernel: str
    rows: int
    keys: int
    stages: int

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.rows}x{self.keys}x{self.stages}"

    def in_place(self, chosen: Tiles) -> Tiles:
        """The chosen tiles with this one among them."""
        tile = replace(getattr(chosen, self.kernel), rows=self.rows, keys=self.keys, stages=self.stages)
        return replace(chosen, **{self.kernel: tile})


# For heads of 128 in half precision on Hopper. A grad_kv of 64 rows by 128 keys spills registers: is it slower for it?
CANDIDATES = (
    Candidate("forward", 128, 64, 3),
    Candidate("forward", 128, 128, 2),
    Candidate("forward", 128, 128, 3),
    Candidate("grad_kv", 32, 128, 2),
    Candidate("grad_kv", 64, 128, 2),
    Candidate("grad_q", 128, 64, 2),
    Candidate("grad_q", 128, 64, 3),
)


def cases(scale: Scale) -> list[Case]:
    """Each candidate at 2,048 and 8,192 tokens, behind the tiles that are chosen."""
    found = []
    for context in (24,) if scale.tiny else (2048, 8192):
        attention = _attention(scale, context)
        for direction in ("fwd", "bwd"):
            found.append(Case(f"{context} chosen {direction}", partial(_measure, scale, attention, direction, None)))
        for candidate in CANDIDATES:
            direction = "fwd" if candidate.kernel == "forward" else "bwd"
            measure = partial(_measure, scale, attention, direction, candidate)
            found.append(Case(f"{context} {candidate.name}", measure))
    return found


def _attention(scale: Scale, context: int) -> AttentionCase:
    if scale.tiny:
        return AttentionCase("tiny", lk.BottleneckLayout(3, context, 5, (17, 4)), 2, 1, 128, scale.dtypes[0])
    return AttentionCase("llama-3.1-8b", bottleneck_row(context, context // 16, 64), 32, 8, 128, torch.bfloat16)


def _measure(scale: Scale, case: AttentionCase, direction: str, candidate: Candidate | None) -> Row:
    """Time one direction under the candidate's tiles; its results must be those of the chosen ones."""
    missing = lk.available_backends("bottleneck_attention")[BACKEND]
    if missing:
        raise Refused(missing)
    tensors = case.tensors(scale.device)
    above = torch.randn_like(tensors[0])
    attend = partial(lk.bottleneck_attention, layout=case.layout, backend=BACKEND)
    wanted = _results(attend, tensors, above)
    chosen = tiles(architecture(tensors[0].device), case.head_dim, case.dtype)
    with _replaced(candidate.in_place(chosen) if candidate else chosen) as used:
        got = _results(attend, tensors, above)
        errors = {name: relative_error(got[name], wanted[name]) for name in wanted}
        if direction == "fwd":
            call = partial(attend, *(x.detach() for x in tensors))
        else:
            call = partial(torch.autograd.grad, attend(*tensors), tensors, above, retain_graph=True)
        row = {"tiles": str(used)} | verdict(errors, TOLERANCES[case.dtype])
        # In the interpreter nothing is to be learnt from time.
        return row if interpreting() else row | timed(call, scale, case.flops(direction))


def _results(attend, tensors: tuple[torch.Tensor, ...], above: torch.Tensor) -> dict[str, torch.Tensor]:
    out = attend(*tensors)
    return dict(zip(("out", "q", "k", "v"), (out.detach(), *torch.autograd.grad(out, tensors, above)), strict=True))


@contextmanager
def _replaced(wanted: Tiles) -> Iterator[Tiles]:
    """Let every module of the package that calls ``tiles`` get the ``wanted`` ones.

    Raises:
        LookupError: none does, and the chosen tiles would be measured under other names.
    """
    users = [
        module
        for name, module in sys.modules.items()
        if name.startswith("lcc_kernels.") and vars(module).get("tiles") is tiles
    ]
    if not users:
        raise LookupError("no module of lcc_kernels calls tiles")
    with ExitStack() as stack:
        for module in users:
            stack.enter_context(mock.patch.object(module, "tiles", return_value=wanted))
        yield wanted
