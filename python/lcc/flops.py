"""Floating point operations of a packed step, counted from its lengths: two for each multiply-add."""

from __future__ import annotations

from collections.abc import Sequence
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

    P and P' are known and do not run; of C and B the last layer runs B alone, unless they are encoded in chunks.
    Projections have two products a row (output, gradient to the input), the LoRA three (gradient to its weights too),
    attention two forward and five backward, the head three. What the backward computes again is a forward without each
    layer's last projection.

    Args:
        model: plain, no LoRA in it.
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
    inner = width - linears[-1][1] * linears[-1][2]
    ranks = settings.rank * sum(inputs + outputs for name, inputs, outputs in linears if name in targets)
    config, copied = model.config, prefix if settings.keep_prefix else 0
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = config.num_attention_heads * head_dim
    asked = len(layers) * sum(segments)
    asked_pairs = sum(length * (copied + buffer) + length * (length + 1) // 2 for length in segments) * len(layers)
    chunked = settings.encode_chunk not in (0, "auto")
    reads = [text + buffer] * (len(layers) - 1) + [text + buffer if chunked else buffer]
    read_pairs = sum(rows * prefix + rows * (rows + 1) // 2 for rows in reads)
    asked_again = int(settings.gradient_checkpointing is True)
    read_again = int(chunked or asked_again)
    return StepFlops(
        projections=4 * width * (sum(reads) + asked) + 2 * inner * (read_again * sum(reads) + asked_again * asked),
        adapter=2 * ranks * ((3 + read_again) * sum(reads) + (3 + asked_again) * asked * settings.coupled),
        attention=2 * heads * ((7 + 2 * read_again) * read_pairs + (7 + 2 * asked_again) * asked_pairs),
        head=6 * config.vocab_size * config.hidden_size * supervised,
    )
