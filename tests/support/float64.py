"""How far a kernel may be from the truth: about as far as plain torch in the same dtype is."""

from __future__ import annotations

import torch


def assert_as_accurate(
    ours: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, floor: float, name: str = ""
) -> None:
    """Assert max |ours - truth| <= 2 max |plain - truth| + floor, ``truth`` in float64 and ``plain`` in ours' dtype."""
    assert ours.shape == truth.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(truth.shape)}"
    error = (ours.double() - truth).abs().max().item()
    allowed = 2 * (plain.double() - truth).abs().max().item() + floor
    assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"
