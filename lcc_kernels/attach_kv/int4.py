"""Four-bit integers, two a byte."""

from __future__ import annotations

import torch


def pack_int4(x: torch.Tensor) -> torch.Tensor:
    """Put neighbouring channels into one byte, the even one into its low half, as ``attach_kv`` reads them.

    Args:
        x: (..., head_dim) int8, each from -8 to 7; head_dim is even.

    Returns:
        (..., head_dim / 2) uint8.

    Raises:
        ValueError: another dtype, an odd head_dim or an integer that four bits do not hold.
    """
    if x.dtype != torch.int8 or not x.ndim or x.shape[-1] % 2:
        raise ValueError(f"x must be (..., head_dim) int8, head_dim even; got {tuple(x.shape)} {x.dtype}")
    if bool(((x < -8) | (x > 7)).any()):
        raise ValueError("x must lie in -8 ... 7: clamp what was rounded beyond")
    bits = x.view(torch.uint8) if x.is_contiguous() else x.contiguous().view(torch.uint8)
    return bits[..., ::2] & 15 | bits[..., 1::2] << 4


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """Undo ``pack_int4``.

    Args:
        packed: (..., head_dim / 2) uint8.

    Returns:
        (..., head_dim) int8.

    Raises:
        ValueError: another dtype.
    """
    if packed.dtype != torch.uint8 or not packed.ndim:
        raise ValueError(f"packed must be (..., head_dim / 2) uint8; got {tuple(packed.shape)} {packed.dtype}")
    halves = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return (halves ^ 8).view(torch.int8) - 8
