"""How a memory is optimised, and in which way a step is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..utils.settings import AUTO, SettingsGroup
from ..utils.values import require

# Samples that a batch of ``auto`` has at least, and tokens of text for each.
LEAST_BATCH, TOKENS_A_SAMPLE = 16, 64


@dataclass(frozen=True)
class TrainingSettings(SettingsGroup):
    """Settings of the optimisation (LCC sections 3.2-3.5 and 4.1, appendix A).

    Attributes:
        steps: optimiser steps at most.
        batch: query samples a step, of each section if the text has some. The reconstruction sample comes on top, with
            its stream's weight. ``auto``: one for each 64 tokens of text, and 16 at least.
        learning_rate: falls linearly to zero.
        momentum: Muon's momentum, and AdamW's beta1. Muon's usual 0.95 remembers too long for some hundred steps
            (benchmarks/log).
        reconstruction_weight, general_weight, self_study_weight: weights of the streams' mean losses. The weights of
            query streams also set each stream's share of a batch.
        rehearsal_weight: in an update, that of the questions that the old memory carries.
        past_learning_rate: in an update, of the old K and V; falls linearly to zero. 0: they stay, bit by bit, in a
            memory that grows.
        evaluate_every: steps between two measurements.
        patience: measurements without a better state before training stops; the best state, over all streams that are
            trained, is kept. 0: training
            never stops early, and the last state is kept.
        keep_prefix: queries see the system prompt and the user header beside the memory.
        loss: ``kl`` (nats a token), or ``mse`` over logits (the paper's ablation).
        isolated_share: of the steps, where there are distractors; in the others, queries see some of them too.
        max_distractors: in such a step at most.
        distractor_weight: in such a step, weight of the stream of questions that the distractors were trained on.
        across_weight: of a text in sections, weight of the stream of questions that take two of them; it also sets that
            stream's share of a batch.
    """

    steps: int = 300
    batch: int | Literal["auto"] = 64
    learning_rate: float = 3e-2
    momentum: float = 0.7
    reconstruction_weight: float = 0.25
    general_weight: float = 0.25
    self_study_weight: float = 1.0
    rehearsal_weight: float = 1.0
    past_learning_rate: float = 3e-2
    evaluate_every: int = 50
    patience: int = 8
    keep_prefix: bool = True
    loss: Literal["kl", "mse"] = "kl"
    isolated_share: float = 0.75
    max_distractors: int = 10
    distractor_weight: float = 1.0
    across_weight: float = 0.5

    @property
    def samples(self) -> int:
        """``batch`` as a number: the least that ``auto`` means, while it is not resolved."""
        return LEAST_BATCH if self.batch == AUTO else int(self.batch)

    def for_text(self, tokens: int) -> TrainingSettings:
        """The settings for a text of so many tokens, ``batch`` as a number."""
        return replace(self, batch=max(LEAST_BATCH, tokens // TOKENS_A_SAMPLE)) if self.batch == AUTO else self

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_count("steps", "evaluate_every", "max_distractors")
        require(
            self.batch == AUTO or int(self.batch) >= 1, "batch", self.batch, "auto, or a whole number of at least 1"
        )
        self.require_more_than(0, "learning_rate")
        self.require_not_negative(
            "patience", "rehearsal_weight", "past_learning_rate", "distractor_weight", "across_weight"
        )
        self.require_share("momentum")
        require(0 <= self.isolated_share <= 1, "isolated_share", self.isolated_share, "a share from 0 to 1")
        weights = (self.reconstruction_weight, self.general_weight, self.self_study_weight)
        require(min(weights) >= 0 < sum(weights), "stream weights", weights, "zero or more, not all zero")


@dataclass(frozen=True)
class ExecutionSettings(SettingsGroup):
    """Settings that change how a step is computed. But for rounding, the result is the same.

    Attributes:
        precision: of the frozen model, ``float32``, ``bfloat16`` or ``auto``: bfloat16 on devices that multiply it
            faster. The LoRA and the buffer embeddings are float32 in any case.
        engine: ``packed`` (one pass a step), or ``reference`` (encode, then samples over a cache). The gradient is the
            same. The next three settings are for ``packed`` alone.
        gradient_checkpointing: compute a layer's activations again in the backward. ``auto``: if a step would not fit.
        encode_chunk: tokens of text that are encoded at a time, and once more in the backward. 0: all at once.
            ``auto``: if a step would not fit with ``gradient_checkpointing`` either.
        float32_logits: hold the logits of the loss in float32 though the model is in half precision, which blurs a KL
            below some 1e-3 nats. ``auto``: on GPUs; a CPU takes several times as long for such a product.
        torch_compile: run the layers of the packed pass through ``torch.compile``.
        teacher_gigabytes: GiB of teacher states that are held in memory. The rest is memory-mapped from disk.
    """

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["packed", "reference"] = "packed"
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    encode_chunk: int | Literal["auto"] = "auto"
    float32_logits: bool | Literal["auto"] = "auto"
    torch_compile: bool = False
    teacher_gigabytes: float = 4.0

    @property
    def chunk(self) -> int:
        """``encode_chunk`` as a number: 0 for the whole text at once, and while ``auto`` is not resolved."""
        return 0 if self.encode_chunk == AUTO else int(self.encode_chunk)

    @property
    def teacher_bytes(self) -> int:
        """``teacher_gigabytes`` in bytes."""
        return int(self.teacher_gigabytes * 2**30)

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_not_negative("teacher_gigabytes")
        require(self.encode_chunk == AUTO or self.chunk >= 0, "encode_chunk", self.encode_chunk, "auto, or 0 or more")
        if self.engine == "reference":
            for name in ("gradient_checkpointing", "encode_chunk", "torch_compile"):
                value = getattr(self, name)
                require(value in (False, AUTO), name, value, "left out with engine='reference', or take 'packed'")
