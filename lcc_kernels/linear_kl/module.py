"""``linear_kl`` as a loss module."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch

from .op import linear_kl


class LinearKL(torch.nn.Module):
    """``linear_kl`` behind the frozen lm_head of a model, with its options set once.

    The head stays the model's: it is read at each call, so that it may be moved, cast or loaded in between. It is no
    part of this module's ``parameters()``, ``state_dict()`` or ``to()``, and gets no gradient from its loss.

    Args:
        head: has a ``weight`` (V, H) and maybe a ``bias`` (V,), as ``model.get_output_embeddings()`` does.
        **options: those of ``linear_kl`` by name, such as ``direction`` or ``reduction``; ``row_weight`` comes with
            each call. Their values are checked at each call.

    Raises:
        TypeError: ``linear_kl`` has no such option.

    Example::

        loss = lk.LinearKL(model.get_output_embeddings(), direction="reverse")
        loss(student_hidden, teacher_hidden, row_weight).backward()
    """

    def __init__(self, head: torch.nn.Module, **options: Any) -> None:
        super().__init__()
        signature(linear_kl).bind(*(None,) * 3, bias=None, row_weight=None, **options)
        self.head: Any
        object.__setattr__(self, "head", head)  # torch's own way would make it a child
        self.options = options

    def forward(
        self, student_hidden: torch.Tensor, teacher_hidden: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss: a scalar, or (rows,) for ``reduction="none"``; float32, or float64 for float64 hidden states.

        Args:
            student_hidden: (rows, H), in the dtype of the head's weight and on its device.
            teacher_hidden: (rows, H), likewise, not requiring a gradient.
            row_weight: (rows,) non-negative weights, or None for ones.

        Raises:
            ValueError, BackendUnavailableError, RuntimeError: as ``linear_kl`` does.
        """
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        return linear_kl(student_hidden, teacher_hidden, weight, bias, row_weight=row_weight, **self.options)

    def extra_repr(self) -> str:
        """The size of the head, and the options that were set."""
        vocab, width = self.head.weight.shape
        return ", ".join([f"hidden={width}, vocab={vocab}", *(f"{k}={v!r}" for k, v in self.options.items())])
