"""Writes into memories of both forms, in float64 on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lcc.compilers.gradmem.attention import NAME
from lcc.compilers.gradmem.writing import Tensors, Written, token_losses, write
from lcc.modeling.attention import attending
from lcc.modeling.kv import KV
from lcc.modeling.lora import frozen
from lcc.modeling.prefill import prefill
from tests.support.tiny_models import tiny_model

FORMS = ("embeddings", "kv")
PADDING = 0


@dataclass
class Case:
    """A batch of texts of 9, 5 and 7 tokens, memories of 3 tokens, and a question behind each."""

    model: Any
    prefix: KV
    start: Tensors
    ids: torch.Tensor
    counted: torch.Tensor
    reads: torch.Tensor
    asked: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, rates: Any, grad_mode: str = "none", **changes: Any) -> Written:
        """``write`` of the case."""
        given = {"start": self.start, "ids": self.ids, "counted": self.counted} | changes
        return write(
            self.model, self.prefix, given["start"], given["ids"], given["counted"], rates, grad_mode, **self.options
        )

    def read_loss(self, memory: Tensors) -> torch.Tensor:
        """The sum of the questions' losses."""
        used = self.options.get("used", dict)
        return token_losses(self.model, self.prefix, used(memory), self.reads, self.asked).sum()

    def only(self, row: int) -> dict[str, Any]:
        """One text of the batch, without its padding."""
        length = int(self.counted[row].sum())
        return {
            "start": {name: tensor[row : row + 1] for name, tensor in self.start.items()},
            "ids": self.ids[row : row + 1, :length],
            "counted": self.counted[row : row + 1, :length],
        }


def one_start(form: str, batch: int, requires_grad: bool = False) -> tuple[Tensors, Tensors]:
    """A start, and as many memories that begin with it."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"embeddings": (3, 48)} if form == "embeddings" else dict.fromkeys(("keys", "values"), (3, 2, 3, 12))
    start = {
        name: (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_(requires_grad)
        for name, shape in shapes.items()
    }
    return start, {name: tensor.expand(batch, *tensor.shape) for name, tensor in start.items()}


@contextmanager
def case(form: str) -> Iterator[Case]:
    """The model is frozen and attends with what can be differentiated twice."""
    model = tiny_model("llama", torch.float64)
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([9, 5, 7])
    counted = torch.arange(9) < lengths[:, None]
    ids = torch.randint(3, 60, (3, 9), generator=generator).where(counted, PADDING)
    reads = torch.randint(3, 60, (3, 6), generator=generator)
    asked = (torch.arange(6) >= 3).expand(3, 6)
    with frozen(model), attending(model, NAME):
        with torch.no_grad():
            prefix = prefill(model, [1, 4, 5])
        yield Case(model, prefix, one_start(form, 3)[1], ids, counted, reads, asked)
