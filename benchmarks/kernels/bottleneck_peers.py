"""Every way a user has today of writing the bottleneck mask, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk
from benchmarks.kernels import merged_calls
from benchmarks.kernels.bottleneck_cases import AttentionCase

CUDNN_FLEX_ARCHITECTURES = ((9, 0), (10, 0), (10, 3))
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Peer:
    """``prepare`` builds the attention of a case on a device; ``refuses`` says why it cannot, or None."""

    prepare: Callable[[AttentionCase, str], Attend]
    refuses: Callable[[AttentionCase, str], str | None] = lambda case, device: None


def _kernel(backend: str) -> Peer:
    def prepare(case: AttentionCase, device: str) -> Attend:
        return partial(lk.bottleneck_attention, layout=case.layout, backend=backend)

    def refuses(case: AttentionCase, device: str) -> str | None:
        return lk.available_backends("bottleneck_attention")[backend]

    return Peer(prepare, refuses)


def _dense_mask(case: AttentionCase, device: str) -> Attend:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=case.layout.dense_mask(device), enable_gqa=True)

    return attend


def _dense_mask_refuses(case: AttentionCase, device: str) -> str | None:
    return f"{case.layout.total} rows squared do not fit" if case.layout.total > 50_000 else None


def _merged_calls(kernel: merged_calls.Kernel) -> Peer:
    def prepare(case: AttentionCase, device: str) -> Attend:
        plan, scale = merged_calls.calls(case.layout), case.head_dim**-0.5
        return partial(merged_calls.attend, kernel=kernel, plan=plan, scale=scale)

    return Peer(prepare, lambda case, device: None if device == "cuda" else "its kernels run on GPUs")


def _flex_attention(case: AttentionCase, device: str) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    start, first, stop = _row_spans(case, device)

    def mask(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (start[q] <= k) & (k <= q) | (first[q] <= k) & (k < stop[q])

    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    total = case.layout.total
    block_mask = torch.compile(create_block_mask)(mask, None, None, total, total, device=device)
    return partial(compiled, block_mask=block_mask, enable_gqa=True)


def _flex_refuses(case: AttentionCase, device: str) -> str | None:
    return None if device == "cuda" else "FlexAttention has no backward on the CPU"


def _cudnn_flex(case: AttentionCase, device: str) -> Attend:
    """docs.nvidia.com/cudnn/fe-oss-apis/attention/flex_attention; written from it, not yet run."""
    from cudnn.flex_attention import create_mask_plan, flex_attn_func

    heads_inside = [tensor.transpose(1, 2) for tensor in case.tensors(device)]
    plan = create_mask_plan(interval_ends(case, device), *heads_inside, build_backward=True)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return flex_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), mask_plan=plan).transpose(1, 2)

    return attend


def _cudnn_flex_refuses(case: AttentionCase, device: str) -> str | None:
    try:
        import_module("cudnn.flex_attention")
    except ImportError as error:
        return f"cudnn.flex_attention does not import ({error}): pip install nvidia-cudnn-frontend[cutedsl]"
    if device != "cuda" or torch.cuda.get_device_capability() not in CUDNN_FLEX_ARCHITECTURES:
        return "its kernels run on GPUs of compute capability 9.0, 10.0 and 10.3"
    return None


def interval_ends(case: AttentionCase, device: str) -> torch.Tensor:
    """(1, 5, total) int32 as cuDNN's interval masks want it: a row sees [0, e0), [e1, e2) and [e3, e4)."""
    start, first, stop = _row_spans(case, device)
    rows = torch.arange(case.layout.total, device=device)
    return torch.stack([torch.zeros_like(rows), first, stop, start, rows + 1])[None].int()


def _row_spans(case: AttentionCase, device: str) -> tuple[torch.Tensor, ...]:
    """Each row's first key of its own span, and the interval that it shares: three (total,) int64."""
    spans = case.layout.spans
    start, _, first, stop = spans.repeat_interleave(spans[:, 1] - spans[:, 0], 0).to(device).T
    return start.contiguous(), first.contiguous(), stop.contiguous()


PEERS = {
    **{name: _kernel(name) for name in lk.available_backends("bottleneck_attention") if name != "reference"},
    "dense_mask_sdpa": Peer(_dense_mask, _dense_mask_refuses),
    "flex_attention": Peer(_flex_attention, _flex_refuses),
    "flash_calls_merged": _merged_calls(merged_calls.FLASH),
    "cudnn_calls_merged": _merged_calls(merged_calls.CUDNN),
    "cudnn_flex_attention": Peer(_cudnn_flex, _cudnn_flex_refuses),
}
