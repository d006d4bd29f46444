"""Mean KL(teacher || student) behind one frozen head, as others compute it. Each takes (student, teacher, weight)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch.nn.functional import kl_div, linear, log_softmax
from torch.utils.checkpoint import checkpoint

import lcc_kernels as lk

CHECKPOINT_ROWS, COMPILED_ROWS = 256, 1024


def naive(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Both logits whole, in float32 from the softmax on."""
    with torch.no_grad():
        expected = log_softmax(linear(teacher, weight).float(), -1)
    return kl_div(log_softmax(linear(student, weight).float(), -1), expected, reduction="batchmean", log_target=True)


def checkpointed(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Chunks of rows whose logits are computed again in the backward, as TRL's chunked losses do it."""
    return _in_chunks(naive, CHECKPOINT_ROWS, student, teacher, weight)


@cache
def _compiled() -> Callable:
    return torch.compile(naive)


def compiled(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``naive`` through Inductor."""
    return _compiled()(student, teacher, weight)


def compiled_chunks(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``checkpointed`` with chunks that Inductor compiles, large ones, so that few kernels wait for one another."""
    return _in_chunks(_compiled(), COMPILED_ROWS, student, teacher, weight)


def _in_chunks(loss: Callable, rows: int, student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor):
    total = student.new_zeros((), dtype=torch.float32)
    for chunk in zip(student.split(rows), teacher.split(rows), strict=True):
        total = total + checkpoint(loss, *chunk, weight, use_reentrant=False) * len(chunk[0])
    return total / len(student)


def liger(student: torch.Tensor, teacher: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Liger's fused linear JSD at beta 0, which is forward KL; it forms dW as well if the weight wants one."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    return LigerFusedLinearJSD(jsd_beta=0.0)(student, weight, teacher, weight)


PEERS: dict[str, Callable] = {
    "torch": partial(lk.linear_kl, backend="torch"),
    "triton": partial(lk.linear_kl, backend="triton"),
    "cuda": partial(lk.linear_kl, backend="cuda"),
    "naive": naive,
    "compiled": compiled,
    "compiled_chunks": compiled_chunks,
    "checkpointed": checkpointed,
    "liger": liger,
}


def missing(peer: str, device: str) -> str | None:
    """Why ``peer`` cannot run here, or None."""
    if peer in ("torch", "triton", "cuda"):
        return lk.available_backends("linear_kl")[peer]
    if peer == "liger" and find_spec("liger_kernel") is None:
        return "liger_kernel is not installed"
    if peer == "liger" and device != "cuda":
        return "Liger runs on GPUs"
    return None
