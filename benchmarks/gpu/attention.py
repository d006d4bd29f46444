"""Bottleneck attention beside its peers: forward and backward of training rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.attention

import lcc_kernels as lk
from benchmarks.common.results_file import Row
from benchmarks.common.timing import peak_bytes
from benchmarks.kernels.bottleneck_cases import AttentionCase, bottleneck_row
from benchmarks.kernels.bottleneck_peers import PEERS

from .case import Case, Refused, Scale, relative_error, timed

# Plain torch on a GPU is a fallback; a dense mask is slower than all others by as much as it holds in vain.
LEFT_OUT = {"torch", "dense_mask_sdpa"}
FLASH = "flash_calls_merged"  # calls torch's flash attention: FlashAttention 2, unless another is put in its place
CONTEXTS = (8192, 2048, 32768)


def cases(scale: Scale) -> list[Case]:
    """Our backends and the peers at each length."""
    contexts = (24,) if scale.tiny else CONTEXTS
    peers = [name for name in PEERS if scale.tiny or name not in LEFT_OUT]
    found = []
    for context in contexts:
        measure = partial(_measure, scale, _attention(scale, context))
        found += [Case(f"{context} {peer}", partial(measure, peer)) for peer in peers]
        found.append(Case(f"{context} {FLASH} on FA3", partial(_on_flash_attention_3, partial(measure, FLASH))))
    return found


def _attention(scale: Scale, context: int) -> AttentionCase:
    if scale.tiny:
        return AttentionCase("tiny", bottleneck_row(context, 4, 3), 2, 1, 16, torch.float32)
    return AttentionCase("llama-3.1-8b", bottleneck_row(context, context // 16, 64), 32, 8, 128, torch.bfloat16)


def _measure(scale: Scale, case: AttentionCase, peer: str) -> Row:
    reason = PEERS[peer].refuses(case, scale.device)
    if reason is not None:
        raise Refused(reason)
    attend, tensors = PEERS[peer].prepare(case, scale.device), case.tensors(scale.device)
    forward = partial(attend, *(x.detach() for x in tensors))
    out = attend(*tensors)
    backward = partial(torch.autograd.grad, out, tensors, torch.randn_like(out), retain_graph=True)
    row = {"difference_from_ours": relative_error(out.detach(), _ours(case, tensors))}
    for direction, call in {"fwd": forward, "bwd": backward}.items():
        measured = timed(call, scale, case.flops(direction))
        row |= {f"{direction}_{name}": value for name, value in measured.items()}
        if scale.device == "cuda":
            row[f"{direction}_peak_bytes"] = peak_bytes(call, scale.device)
    return row


def _on_flash_attention_3(measure: Callable[[], Row]) -> Row:
    """``measure`` while torch's own flash attention is FlashAttention 3."""
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        raise Refused("this torch cannot run FlashAttention 3 in place of its own")
    try:
        activate("FA3")
    except (ImportError, RuntimeError, ValueError) as error:
        raise Refused(f"torch cannot run FlashAttention 3: {error}") from error
    try:
        return measure()
    finally:
        torch.nn.attention.restore_flash_attention_impl()


def _ours(case: AttentionCase, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    out = lk.bottleneck_attention(*(x.detach() for x in tensors), case.layout)
    assert isinstance(out, torch.Tensor)
    return out
