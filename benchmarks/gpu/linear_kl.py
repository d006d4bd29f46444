"""Linear KL beside its peers, and the bytes that the row kernels move."""

from __future__ import annotations

from functools import partial

import torch

import lcc_kernels as lk
from benchmarks.common.results_file import Row
from benchmarks.common.timing import copies, peak_bytes, replayed_seconds
from benchmarks.kernels.linear_kl_cases import HeadCase
from benchmarks.kernels.linear_kl_peers import PEERS, missing

from .case import Case, Refused, Scale, backends, timed

LEFT_OUT = {"torch"}  # a fallback on a GPU
ROWS = (8192, 1024, 256)
LLAMA = {"hidden": 4096, "vocab": 128256}


def cases(scale: Scale) -> list[Case]:
    """Loss and gradient behind the head of Llama-3.1-8B at each number of rows; then logits that are already there."""
    heads = [_head(scale, rows) for rows in ((8,) if scale.tiny else ROWS)]
    peers = [name for name in PEERS if scale.tiny or name not in LEFT_OUT]
    found = [Case(f"{head.rows} {peer}", partial(_measure, scale, head, peer)) for head in heads for peer in peers]
    found += [
        Case(f"row kernel {backend} {what}", partial(_rows, scale, backend, what != "loss"))
        for backend in backends("kl_from_logits", scale)
        for what in ("loss", "loss and gradient")
    ]
    return found


def _head(scale: Scale, rows: int) -> HeadCase:
    if scale.tiny:
        return HeadCase("tiny", rows, 16, 301, torch.float32)
    return HeadCase(f"llama-3.1-8b-{rows}", rows, **LLAMA, dtype=torch.bfloat16)


def _measure(scale: Scale, head: HeadCase, peer: str) -> Row:
    reason = missing(peer, scale.device)
    if reason is not None:
        raise Refused(reason)
    if scale.tiny and peer.startswith("compiled"):
        raise Refused("Inductor's compilation takes longer than a tiny case may")
    student, teacher, weight = head.tensors(scale.device)

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(PEERS[peer](student, teacher, weight), student)

    row = timed(step, scale, head.flops)
    return row | ({"peak_bytes": peak_bytes(step, scale.device)} if scale.device == "cuda" else {})


def _rows(scale: Scale, backend: str, gradient: bool) -> Row:
    """One chunk of logits. With a gradient the op copies the student's, and the kernel puts the gradient over them."""
    shape = (2, 8, 301) if scale.tiny else (2, 1024, LLAMA["vocab"])
    student, teacher = torch.randn(shape, device=scale.device, dtype=scale.dtypes[0])
    student.requires_grad_(gradient)
    moved = (2 + 3 * gradient) * student.nbytes  # both are read; copied: read and written; the gradient written
    loss = partial(lk.kl_from_logits, student, teacher, reduction="none", backend=backend)
    seconds = replayed_seconds([loss], scale.device)
    copied = replayed_seconds(copies(moved, scale.device), scale.device)
    return {"seconds": seconds, "bytes_per_second": moved / seconds, "share_of_copy": copied / seconds}
