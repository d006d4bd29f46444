"""The last layer's MLP on the rows that anyone reads: its output at any other row goes nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def mlp_on(
    layer: torch.nn.Module, rows: torch.Tensor, around: Callable[[], AbstractContextManager] = nullcontext
) -> Iterator[None]:
    """Inside the block, let the MLP of ``layer`` run on ``rows`` alone; what it adds to the others is zero.

    Does nothing for a layer whose MLP has another name than ``mlp``.

    Args:
        rows: of (batch, tokens) as one, int64, on the layer's device.
        around: makes the context in which the MLP runs.
    """
    mlp = getattr(layer, "mlp", None)
    if mlp is None:
        yield
        return
    forward, own = mlp.forward, vars(mlp).get("forward")

    def on_rows(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        with around():
            out = forward(flat.index_select(0, rows)[None])[0]
        return out.new_zeros(flat.shape).index_copy(0, rows, out).view_as(hidden)

    mlp.forward = on_rows
    try:
        yield
    finally:
        del mlp.forward
        if own is not None:
            mlp.forward = own
