"""The two varlen kernels of flash_attn.flash_attn_interface 2.7 in plain torch: their signatures and demands."""

from __future__ import annotations

import torch


def _flash_attn_varlen_forward(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left=-1,
    window_size_right=-1,
    softcap=0.0,
    alibi_slopes=None,
    return_softmax=False,
    block_table=None,
    leftpad_k=None,
    seqused_k=None,
):
    """q (tokens, heads, head_dim) to out like it and lse (heads, tokens)."""
    assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = torch.full(q.shape, torch.nan, dtype=q.dtype), torch.full(q.shape[1::-1], torch.nan, dtype=wide)
    for rows, keys in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        scores = _scores(q[rows], k[keys], softmax_scale, causal)
        out[rows] = (scores.softmax(-1) @ _heads(v[keys], q)).transpose(0, 1).to(q.dtype)
        lse[:, rows] = scores.logsumexp(-1)
    return out, lse, torch.empty(0), torch.empty(2, dtype=torch.int64)


def _flash_attn_varlen_backward(
    dout,
    q,
    k,
    v,
    out,
    softmax_lse,
    dq,
    dk,
    dv,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
    window_size_left,
    window_size_right,
    softcap,
    alibi_slopes,
    deterministic,
    rng_state=None,
):
    """Fill dq, dk and dv given any out and lse, as the kernel does."""
    assert (dropout_p, window_size_left, window_size_right, softcap, alibi_slopes) == (0.0, -1, -1, 0.0, None)
    assert softmax_lse.is_contiguous()
    assert softmax_lse.shape == q.shape[1::-1]
    assert all(x.stride(-1) == 1 for x in (dq, dk, dv))
    for rows, keys in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        weights = (_scores(q[rows], k[keys], softmax_scale, causal) - softmax_lse[:, rows, None]).exp()
        above = _heads(dout[rows], q)
        delta = (above * _heads(out[rows], q)).sum(-1, keepdim=True)
        slopes = weights * (above @ _heads(v[keys], q).mT - delta) * softmax_scale
        dq[rows] = (slopes @ _heads(k[keys], q)).transpose(0, 1).to(q.dtype)
        dk[keys] = _kv_heads(slopes.mT @ _heads(q[rows], q), k)
        dv[keys] = _kv_heads(weights.mT @ above, v)
    return torch.empty(0)


def _sequences(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """(rows, keys) of each sequence."""
    assert q.ndim == k.ndim == 3
    edges = []
    for cumulative, longest, tokens in ((cu_seqlens_q, max_seqlen_q, len(q)), (cu_seqlens_k, max_seqlen_k, len(k))):
        assert cumulative.dtype == torch.int32
        assert cumulative.is_contiguous()
        assert cumulative[0] == 0
        assert cumulative[-1] == tokens
        assert isinstance(longest, int)
        assert cumulative.diff().max() == longest
        edges.append([slice(*pair) for pair in cumulative.unfold(0, 2, 1).tolist()])
    return zip(*edges, strict=True)


def _scores(q, k, scale, causal):
    """(heads, rows, keys), the last row and key aligned if ``causal``."""
    scores = _heads(q, q) @ _heads(k, q).mT * scale
    if causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + len(k) - len(q))
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores


def _heads(x, q):
    """(tokens, its heads, head_dim) to (heads of q, tokens, head_dim), float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.transpose(0, 1).repeat_interleave(q.shape[1] // x.shape[1], 0)


def _kv_heads(grad, kv):
    """(heads, keys, head_dim) summed over groups to (keys, kv_heads, head_dim)."""
    return grad.unflatten(0, (kv.shape[1], -1)).sum(1).transpose(0, 1).to(kv.dtype)
