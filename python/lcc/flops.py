"""Floating point operations of a packed step, counted from its lengths: two for each multiply-add."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .encode import attention_projections
from .kv import decoder
from .settings import CompileSettings


@dataclass(frozen=True)
class StepFlops:
    """Forward and backward of one step.

    Attributes:
        projections: of the frozen layers; their weights need no gradient.
        adapter: of the LoRA.
        attention: over visible pairs alone; the backward forms the scores again.
        head: logits of student and teacher, and the gradient to the student.
    """

    projections: int
    adapter: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.projections + self.adapter + self.attention + self.head


def step_flops(
    model: PreTrainedModel,
    prefix: int,
    text: int,
    buffer: int,
    segments: Sequence[int],
    supervised: int,
    settings: CompileSettings,
) -> StepFlops:
    """Operations of a packed step over [P | C | B | P' | segments].

    P and P' are known and do not run; of C and B the last layer runs B alone. Projections have two products a row
    (output, gradient to the input), the LoRA three (gradient to its weights too), attention two forward and five
    backward, the head three.

    Args:
        prefix, text, buffer: tokens of P, C and B.
        segments: tokens of each sample.
        supervised: tokens of all samples whose prediction is trained.
    """
    layers = decoder(model).layers
    linears = [
        (name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in layers[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    targets = settings.targets or attention_projections(model)
    width = sum(inputs * outputs for _, inputs, outputs in linears)
    ranks = settings.rank * sum(inputs + outputs for name, inputs, outputs in linears if name in targets)
    samples, copied = sum(segments), prefix if settings.keep_prefix else 0
    asked = samples * (copied + buffer) + sum(length * (length + 1) // 2 for length in segments)
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def over_layers(count: Callable[[int], int]) -> int:
        """``count`` of the rows of C and B that a layer runs, summed over layers."""
        return (len(layers) - 1) * count(text + buffer) + count(buffer)

    pairs = over_layers(lambda read: read * prefix + read * (read + 1) // 2 + asked)
    return StepFlops(
        projections=4 * width * over_layers(lambda read: read + samples),
        adapter=6 * ranks * over_layers(lambda read: read + samples * settings.coupled),
        attention=14 * config.num_attention_heads * head_dim * pairs,
        head=6 * config.vocab_size * config.hidden_size * supervised,
    )
