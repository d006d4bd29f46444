"""Rotary position embedding of keys, applied and undone (RoFormer; the tables are transformers' cos and sin)."""

from __future__ import annotations

import torch


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first ``rotary_dim`` channels of ``x`` (half-split pairs).

    Args:
        x: (..., tokens, head_dim).
        cos, sin: (tokens, rotary_dim) at the tokens' positions, any attention scaling included.
    """
    rotary_dim = cos.shape[-1]
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    return torch.cat((turned * cos + _rotate_half(turned) * sin, rest), dim=-1)


def undo_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Invert ``apply_rotary`` for the same tables."""
    scale = cos.square() + sin.square()
    return apply_rotary(x, cos / scale, -sin / scale)
