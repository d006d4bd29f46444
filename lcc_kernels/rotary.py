"""Rotary position embedding of keys, applied and undone (RoFormer; the tables are transformers' cos and sin)."""

from __future__ import annotations

import torch


def _quarter_turn(x: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Each pair (a, b) of channels to (-b, a)."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def pair_entries(x: torch.Tensor, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of the first and of the second channel of every pair, (..., rotary_dim / 2) each."""
    half = x.shape[-1] // 2
    return (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Rotate the first ``rotary_dim`` channels of ``x``.

    Args:
        x: (..., tokens, head_dim).
        cos, sin: (tokens, rotary_dim) at the tokens' positions, any attention scaling included.
        interleaved: the pairs are channels (0, 1), (2, 3), ..., and the tables hold each value twice in a row, instead
            of (0, rotary_dim / 2), (1, rotary_dim / 2 + 1), ... with tables of two equal halves.
    """
    rotary_dim = cos.shape[-1]
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    return torch.cat((turned * cos + _quarter_turn(turned, interleaved) * sin, rest), dim=-1)


def undo_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Invert ``apply_rotary`` for the same tables and pairs."""
    scale = cos.square() + sin.square()
    return apply_rotary(x, cos / scale, -sin / scale, interleaved)
