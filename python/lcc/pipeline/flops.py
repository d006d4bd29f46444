"""Floating point operations of a packed step, counted from its lengths: two for each multiply-add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ..compilers.lora import LoraSettings
from ..modeling.kv import decoder, kv_shape
from ..modeling.lora import attention_projections
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

    P and P' are known and do not run; of C and B the last layer runs B alone, unless they are encoded in chunks, and
    its MLP runs on supervised tokens alone, unless layers are compiled.
    Projections have two products a row (output, gradient to the input), the LoRA three (gradient to its weights too),
    attention two forward and five backward, the head three. What the backward computes again is a forward without each
    layer's last projection, but for the last layer's where its rows are chosen.

    Args:
        model: plain, no LoRA in it.
        prefix, text, buffer: tokens of P, C and B.
        segments: tokens of each sample.
        supervised: tokens of all samples whose prediction is trained.
    """
    layers = decoder(model).layers
    lora, execution = settings.compiler, settings.execution
    assert isinstance(lora, LoraSettings)
    targets = lora.targets or attention_projections(model)
    whole = _Linears.of(layers[0], targets)
    mlp = _Linears.of(getattr(layers[0], "mlp", torch.nn.Identity()), targets)
    config, copied = model.config, prefix if settings.training.keep_prefix else 0
    *_, head_dim = kv_shape(config)
    heads = config.num_attention_heads * head_dim
    asked = len(layers) * sum(segments)
    asked_pairs = sum(length * (copied + buffer) + length * (length + 1) // 2 for length in segments) * len(layers)
    chunked = execution.chunk > 0
    reads = [text + buffer] * (len(layers) - 1) + [text + buffer if chunked else buffer]
    read_pairs = sum(rows * prefix + rows * (rows + 1) // 2 for rows in reads)
    asked_again = int(execution.gradient_checkpointing is True)
    read_again = int(chunked or asked_again)
    chosen = not execution.torch_compile
    unread = (0 if chunked else buffer) * chosen, (sum(segments) - supervised) * chosen
    down = mlp.weights - mlp.inner

    def frozen(linears: _Linears, read: int, asked: int) -> int:
        return 4 * linears.weights * (read + asked) + 2 * linears.inner * (read_again * read + asked_again * asked)

    def trained(linears: _Linears, read: int, asked: int) -> int:
        rows = (3 + read_again) * read + (3 + asked_again) * asked * lora.coupled
        return 2 * lora.rank * linears.adapted * rows

    return StepFlops(
        projections=frozen(whole, sum(reads), asked)
        - frozen(mlp, *unread)
        + 2 * down * supervised * asked_again * chosen,
        adapter=trained(whole, sum(reads), asked) - trained(mlp, *unread),
        attention=2 * heads * ((7 + 2 * read_again) * read_pairs + (7 + 2 * asked_again) * asked_pairs),
        head=6 * config.vocab_size * config.hidden_size * supervised,
    )


@dataclass(frozen=True)
class _Linears:
    """The linear layers of a module.

    Attributes:
        weights: of all.
        inner: of all but the last.
        adapted: inputs and outputs of those with a LoRA.
    """

    weights: int
    inner: int
    adapted: int

    @classmethod
    def of(cls, module: torch.nn.Module, targets: Sequence[str]) -> _Linears:
        named = [(name, part) for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)]
        sizes = [part.in_features * part.out_features for _, part in named]
        adapted = [part for name, part in named if name.rpartition(".")[2] in targets]
        return cls(sum(sizes), sum(sizes[:-1]), sum(part.in_features + part.out_features for part in adapted))
