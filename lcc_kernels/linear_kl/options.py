"""The one object that carries what a distillation loss computes, from the public ops down to the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

DIRECTIONS = ("forward", "reverse", "jsd")
LOSSES = ("kl", "mse")

# The order of csrc/linear_kl/divergence.cuh's Kind and Shape.
KINDS = ("forward", "reverse", "jsd", "mse")
SHAPES = ("plain", "negated", "capped")
SMALLEST_SCALE = 1e-37


@dataclass(frozen=True)
class KLOptions:
    """Which divergence of ``z = softcap * tanh(logit_scale * x / softcap) / temperature``, given raw logits ``x``.

    The fields are the arguments of ``linear_kl`` with the same names. ``group`` is the name of its ``process_group``.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    temperature: float = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0
    direction: str = "forward"
    beta: float = 0.5
    loss: str = "kl"
    chunk_bytes: int | None = None
    group: str | None = None
    logit_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS or self.loss not in LOSSES:
            raise ValueError(
                f"direction must be one of {DIRECTIONS} and loss one of {LOSSES}; got {self.direction!r}, {self.loss!r}"
            )
        if not self.temperature > 0 or (self.softcap is not None and not self.softcap > 0):
            raise ValueError(f"temperature and softcap must be > 0; got {self.temperature} and {self.softcap}")
        if not abs(self.logit_scale) < math.inf:
            raise ValueError(f"logit_scale must be finite; got {self.logit_scale}")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta must lie strictly between 0 and 1; got {self.beta}. "
                "Its limits are direction='forward' and direction='reverse'"
            )
        if self.chunk_bytes is not None and self.chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be at least 1; got {self.chunk_bytes}")
        if self.logit_dtype not in (None, torch.float32):
            raise ValueError(f"logit_dtype must be None or torch.float32; got {self.logit_dtype}")

    @property
    def arguments(self) -> tuple:
        """The fields in the order of ``SCHEMA``: ``KLOptions(*options.arguments) == options``."""
        return (
            self.temperature,
            self.softcap,
            self.logit_scale,
            self.direction,
            self.beta,
            self.loss,
            self.chunk_bytes,
            self.group,
            self.logit_dtype,
        )

    def of_logits(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the raw logits behind a weight of ``dtype``."""
        return torch.promote_types(dtype, self.logit_dtype or dtype)

    @property
    def kind(self) -> str:
        """``forward``, ``reverse``, ``jsd`` or ``mse``: which formula a row takes."""
        return "mse" if self.loss == "mse" else self.direction

    @property
    def inner(self) -> float:
        """Factor on raw logits before the soft-cap's tanh."""
        return self.logit_scale / (self.softcap or 1.0)

    @property
    def outer(self) -> float:
        """Factor after the tanh; without a soft-cap ``z = inner * outer * x``."""
        return (self.softcap or 1.0) / self.temperature

    @property
    def factor(self) -> float:
        """The derivative of ``z`` at ``x``, but for the tanh's."""
        return self.inner * self.outer

    @property
    def shape(self) -> str:
        """What a row kernel makes of a raw logit before it multiplies by ``scale``: one of ``SHAPES``."""
        if self.softcap is not None:
            return "capped"
        return "negated" if self.factor < 0 else "plain"

    @property
    def scale(self) -> float:
        """What is left to multiply by, > 0: of 0 times the -inf beyond a vocabulary would come NaN."""
        return max(self.outer if self.softcap is not None else abs(self.factor), SMALLEST_SCALE)

    def transform(self, logits: torch.Tensor) -> torch.Tensor:
        """Raw logits to ``z``, in the precision of ``logits`` and at least float32. May return a view of them."""
        logits = logits.to(accumulation_dtype(logits.dtype))
        if self.softcap is not None:
            return (logits * self.inner).tanh_() * self.outer
        return logits if self.factor == 1.0 else logits * self.factor

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """The derivative of ``transform`` at raw logits."""
        if self.softcap is None:
            return self.factor
        capped = (logits.to(accumulation_dtype(logits.dtype)) * self.inner).tanh_()
        return capped.square_().neg_().add_(1.0).mul_(self.factor)


SCHEMA = (
    "float temperature, float? softcap, float logit_scale, str direction, float beta, str loss, "
    "int? chunk_bytes, str? group, ScalarType? logit_dtype"
)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything below."""
    return torch.promote_types(dtype, torch.float32)
