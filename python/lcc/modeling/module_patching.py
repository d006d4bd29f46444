"""Other forwards for a model's modules, inside a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


@contextmanager
def running(modules: Iterable[torch.nn.Module], runs: Sequence[Callable]) -> Iterator[None]:
    """Let ``runs`` be the modules' forwards inside the block."""
    before = [(module, vars(module).get("forward")) for module in modules]
    try:
        for (module, _), run in zip(before, runs, strict=True):
            module.forward = run
        yield
    finally:
        for module, forward in before:
            del module.forward
            if forward is not None:
                module.forward = forward


def mlp_on(
    layer: torch.nn.Module, rows: torch.Tensor, around: Callable[[], AbstractContextManager] = nullcontext
) -> AbstractContextManager[None]:
    """Inside the block, let the MLP of ``layer`` run on ``rows`` alone; what it adds to the others is zero.

    For a last layer, whose output at rows that nobody reads goes nowhere. Does nothing for a layer whose MLP has
    another name than ``mlp``.

    Args:
        rows: of (batch, tokens) as one, int64, on the layer's device.
        around: makes the context in which the MLP runs.
    """
    mlp = getattr(layer, "mlp", None)
    if mlp is None:
        return nullcontext()
    forward = mlp.forward

    def on_rows(hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.flatten(0, 1)
        with around():
            out = forward(flat.index_select(0, rows)[None])[0]
        return out.new_zeros(flat.shape).index_copy(0, rows, out).view_as(hidden)

    return running([mlp], [on_rows])
