"""Bottleneck attention on the varlen kernels of flash-attn 2.7 or newer: ``torch_path``'s decomposition in two calls.

Spans partition the row, so one causal call has every span as a sequence where it lies. A second call, unmasked, lets
the segment rows of each document attend to the interval that they share. The two are merged by log-sum-exp, and the
backward kernel takes the merged out and lse in both. Not yet run on a GPU: only with a stand-in for the kernels, which
is why ``auto`` does not choose it.
"""

from __future__ import annotations

from importlib import import_module
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from ..plain_attention import merge
from .layout import shared_reads


def missing() -> str | None:
    """Why flash-attn cannot run here, or None."""
    try:
        _interface()
    except ImportError as error:
        return f"flash_attn does not import ({error}): pip install 'lcc-kernels[flash]'"
    return None if torch.cuda.is_available() else "no CUDA device"


def refuses(*arguments: object) -> str | None:
    """Why the kernels cannot take these arguments of ``forward`` or ``backward``, or None."""
    q = arguments[0]
    assert isinstance(q, torch.Tensor)
    if not q.is_cuda:
        return "its inputs must be CUDA tensors"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn has no {q.dtype}: use float16 or bfloat16, or another backend"
    if q.shape[-1] % 8 or q.shape[-1] > 256:
        return f"flash-attn needs a head_dim that is a multiple of 8 up to 256; got {q.shape[-1]}"
    return None


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, spans: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out like q and lse (batch, heads, total) float32. Arguments as in ``reference.forward``."""
    if q.numel() == 0:
        return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    inputs = [_tokens(x) for x in (q, k, v)]
    own = _spans(spans, q)
    out, lse = _attend(inputs, own, own, True, scale)
    for readers, shared in _reads(spans, q):
        merged, merged_lse = out[readers.rows], lse[readers.rows]
        merge(merged, merged_lse, *_attend(inputs, readers, shared, False, scale))
        out[readers.rows], lse[readers.rows] = merged, merged_lse
    return _heads(out, len(q)), _heads(lse, len(q))


def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    spans: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v. Shapes as in ``forward``."""
    if q.numel() == 0:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    inputs = [_tokens(x) for x in (grad, q, k, v, out, lse)]
    own = _spans(spans, q)
    grads = _attend_backward(inputs, own, own, True, scale)
    for readers, shared in _reads(spans, q):
        gained = _attend_backward(inputs, readers, shared, False, scale)
        for whole, part, where in zip(grads, gained, (readers, shared, shared), strict=True):
            whole[where.rows] += part
    grad_q, grad_k, grad_v = (_heads(x, len(q)) for x in grads)
    return grad_q, grad_k, grad_v


class _Sequences(NamedTuple):
    """Tokens that are the sequences of a varlen call: edges (sequences + 1,) int32 on the device, the longest's length.

    ``rows`` picks them, in order and once each, from the (batch * total) tokens.
    """

    rows: torch.Tensor | slice
    edges: torch.Tensor
    longest: int


def _spans(spans: torch.Tensor, q: torch.Tensor) -> _Sequences:
    """Every span of every row of the batch: all tokens."""
    lengths = (spans[:, 1] - spans[:, 0]).tolist()
    return _Sequences(slice(None), _edges(lengths, q), max(lengths))


def _reads(spans: torch.Tensor, q: torch.Tensor) -> list[tuple[_Sequences, _Sequences]]:
    """The readers of shared intervals and those intervals, as one call's queries and keys; nothing if none are read."""
    reads = shared_reads(spans)
    return [(_gathered([rows for rows, _ in reads], q), _gathered([keys for _, keys in reads], q))] if reads else []


def _gathered(slices: list[slice], q: torch.Tensor) -> _Sequences:
    """The same slices of every row of the batch."""
    lengths = [where.stop - where.start for where in slices]
    rows = torch.cat([torch.arange(where.start, where.stop) for where in slices])
    firsts = q.shape[2] * torch.arange(q.shape[0])
    return _Sequences((firsts[:, None] + rows).flatten().to(q.device), _edges(lengths, q), max(lengths))


def _edges(lengths: list[int], q: torch.Tensor) -> torch.Tensor:
    edges = accumulate(lengths * q.shape[0], initial=0)
    return torch.tensor([*edges], dtype=torch.int32).to(q.device)


def _attend(
    inputs: list[torch.Tensor], queries: _Sequences, keys: _Sequences, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (tokens, heads, head_dim) and lse (tokens, heads) of the queries; ``inputs`` are all tokens' q, k and v."""
    q, k, v = inputs
    out, lse, *_ = _interface()._flash_attn_varlen_forward(
        q[queries.rows],
        k[keys.rows],
        v[keys.rows],
        **_arguments(queries, keys, causal, scale),
    )
    return out, lse.T


def _attend_backward(
    inputs: list[torch.Tensor], queries: _Sequences, keys: _Sequences, causal: bool, scale: float
) -> list[torch.Tensor]:
    """Gradients of the queries and keys picked; ``inputs`` are all tokens' grad, q, k, v and merged out and lse."""
    picked = (queries, queries, keys, keys, queries, queries)
    grad, q, k, v, out, lse = (x[where.rows] for x, where in zip(inputs, picked, strict=True))
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    _interface()._flash_attn_varlen_backward(
        grad,
        q,
        k,
        v,
        out,
        lse.T.contiguous(),  # read as (heads, tokens) whatever its strides
        *grads,
        **_arguments(queries, keys, causal, scale),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return grads


def _arguments(queries: _Sequences, keys: _Sequences, causal: bool, scale: float) -> dict[str, object]:
    """What the two kernels have in common."""
    return {
        "cu_seqlens_q": queries.edges,
        "cu_seqlens_k": keys.edges,
        "max_seqlen_q": queries.longest,
        "max_seqlen_k": keys.longest,
        "dropout_p": 0.0,
        "softmax_scale": scale,
        "causal": causal,
        "window_size_left": -1,
        "window_size_right": -1,
    }


def _interface() -> Any:
    return import_module("flash_attn.flash_attn_interface")


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, total, ...) to (batch * total, heads, ...), a view for a batch of one."""
    return x.transpose(1, 2).flatten(0, 1)


def _heads(x: torch.Tensor, batch: int) -> torch.Tensor:
    """(batch * total, heads, ...) to a contiguous (batch, heads, total, ...)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()
