"""What a compilation is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import InputError

OPTIMIZERS = ("muon", "adamw")
BUFFER_INITS = ("vocabulary", "sampled", "even")


@dataclass(frozen=True)
class CompileSettings:
    """Settings of one compilation; see LCC sections 3.4, 4.1 and appendix A.

    Attributes:
        ratio: context tokens a buffer token.
        steps: optimiser steps at most.
        batch: query samples a step; the reconstruction sample is added to them, with its stream's weight.
        optimizer: of the LoRA, ``muon`` or ``adamw``; the buffer embeddings always have AdamW.
        learning_rate: of the LoRA, decaying linearly to zero.
        buffer_learning_rate: of the buffer embeddings.
        momentum: share of the average gradient that a step keeps, of both optimisers (AdamW's first beta). Muon's
            usual 0.95 remembers too long for some hundred steps (benchmarks/LOG.md).
        buffer_init: where the buffer embeddings start, see ``lcc.initial``.
        rank, alpha: of the LoRA.
        targets: names of the linear layers that it adapts, or None for every attention projection.
        reconstruction_weight, general_weight, self_study_weight: weights of the streams' mean losses, by which the two
            of queries share a batch too.
        general_queries: how many context-agnostic queries to draw.
        self_study_questions: how many distinct questions the model asks itself about the text; 0 for none.
        self_study_temperature: sampling temperature of those questions.
        self_study_piece: tokens of text that the model asks about at a time; 0 for the whole text at once.
        self_study_hard: share of them that are hard: half about pieces twice as long, half about the whole text.
        self_study_follow_ups: share of them that end a conversation, in which the model answers the turns before.
        max_response_tokens: longest teacher response, and longest question that the model may ask itself.
        held_out: share of the query samples kept out of training to measure the held-out KL; of self-asked questions
            first those whose answer another one teaches.
        evaluate_every: steps between two measurements.
        patience: measurements without a better held-out KL before stopping early; the best state is kept. 0 never
            stops, and keeps the last state.
        parse_special_tokens: let special tokens that are written in the text, the queries and the questions be control
            tokens; by default they are plain text.
        keep_prefix: whether queries see the system prompt and user header beside the memory.
        loss: ``kl`` (nats a token) or ``mse`` over logits (the paper's ablation).
        coupled: leave the LoRA on for queries and responses while training (the paper's ablation).
        precision: ``auto`` (bfloat16 autocast on devices that have it), ``float32`` or ``bfloat16``.
        engine: ``packed`` (one pass a step) or ``reference`` (encode, then samples over a cache); the same gradient.
            The next three settings are of ``packed`` alone.
        gradient_checkpointing: compute a layer's activations again in the backward; ``auto`` if a step would not fit.
        encode_chunk: tokens of text encoded at a time, each chunk again in the backward; 0 for all at once, ``auto``
            only if a step would not fit with ``gradient_checkpointing`` either.
        torch_compile: run the packed pass's layers through ``torch.compile``.
        teacher_gigabytes: teacher states held in memory, in GiB; the rest is memory-mapped from disk.
        seed: of every random draw.
    """

    ratio: float = 16.0
    steps: int = 300
    batch: int = 64
    optimizer: str = "muon"
    learning_rate: float = 3e-2
    buffer_learning_rate: float = 3e-2
    momentum: float = 0.7
    buffer_init: str = "even"
    rank: int = 64
    alpha: float = 64.0
    targets: tuple[str, ...] | None = None
    reconstruction_weight: float = 0.25
    general_weight: float = 0.25
    self_study_weight: float = 1.0
    general_queries: int = 600
    self_study_questions: int = 2000
    self_study_temperature: float = 0.6
    self_study_piece: int = 40
    self_study_hard: float = 0.35
    self_study_follow_ups: float = 0.15
    max_response_tokens: int = 64
    held_out: float = 0.1
    evaluate_every: int = 50
    patience: int = 8
    parse_special_tokens: bool = False
    keep_prefix: bool = True
    loss: str = "kl"
    coupled: bool = False
    precision: str = "auto"
    engine: str = "packed"
    gradient_checkpointing: bool | str = "auto"
    encode_chunk: int | str = "auto"
    torch_compile: bool = False
    teacher_gigabytes: float = 4.0
    seed: int = 0

    @property
    def chunk(self) -> int:
        """``encode_chunk`` as a number: 0 for all of the text at once, and while ``auto`` is not settled."""
        return 0 if self.encode_chunk == "auto" else int(self.encode_chunk)

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            InputError: a setting is out of range.
        """
        for name in ("steps", "batch", "rank", "max_response_tokens", "evaluate_every"):
            value = getattr(self, name)
            _require(type(value) is int and value >= 1, name, value, "a whole number of at least 1")
        _require(self.ratio >= 1, "ratio", self.ratio, "at least 1 (16: one buffer token for 16 tokens of text)")
        for name in ("learning_rate", "self_study_temperature", "alpha"):
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "positive and finite")
        for name in (
            "buffer_learning_rate", "general_queries", "self_study_questions", "self_study_piece", "patience",
            "teacher_gigabytes",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        weights = (self.reconstruction_weight, self.general_weight, self.self_study_weight)
        _require(min(weights) >= 0 < sum(weights), "stream weights", weights, "zero or more, not all zero")
        for name in ("held_out", "momentum"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        shares = (self.self_study_hard, self.self_study_follow_ups)
        plain = 1 - sum(shares)
        possible = min(shares) >= 0 and (plain > 0 or plain == self.self_study_follow_ups == 0)
        wanted = "zero or more, and leave plain questions for conversations to go on from"
        _require(possible, "self_study_hard and self_study_follow_ups", shares, wanted)
        _require(self.loss in ("kl", "mse"), "loss", self.loss, "kl or mse")
        _require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, " or ".join(OPTIMIZERS))
        _require(self.buffer_init in BUFFER_INITS, "buffer_init", self.buffer_init, " or ".join(BUFFER_INITS))
        _require(self.engine in ("packed", "reference"), "engine", self.engine, "packed or reference")
        checkpointing, chunk = self.gradient_checkpointing, self.encode_chunk
        valid = checkpointing == "auto" or isinstance(checkpointing, bool)
        _require(valid, "gradient_checkpointing", checkpointing, "auto, True or False")
        valid = chunk == "auto" or (type(chunk) is int and chunk >= 0)
        _require(valid, "encode_chunk", chunk, "auto, or a whole number of at least 0")
        if self.engine == "reference":
            for name in ("gradient_checkpointing", "encode_chunk", "torch_compile"):
                value = getattr(self, name)
                _require(value in (False, "auto"), name, value, "left out with engine='reference', or take 'packed'")
        precisions = ("auto", "float32", "bfloat16")
        _require(self.precision in precisions, "precision", self.precision, "auto, float32 or bfloat16")


RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    # What every method of the fidelity table is given: as many steps as fit all of them into an hour.
    "fast": {"steps": 110, "evaluate_every": 55},
    # Sections 3.4, 4.1, appendix A. 45 epochs of 2,000 queries and 2,000 reconstructions in batches of 64 (appendix A)
    # are 2,812 steps, and half of a batch is reconstruction. Section 4.1 has batches of 8: batch=4, steps=22500.
    "paper": {
        "steps": 2812,
        "batch": 32,
        "optimizer": "adamw",
        "learning_rate": 2e-5,
        "buffer_learning_rate": 2e-5,
        "momentum": 0.9,
        "buffer_init": "vocabulary",
        "rank": 8,
        "alpha": 16.0,
        "general_queries": 2000,
        "reconstruction_weight": 1.0,
        "general_weight": 1.0,
        "self_study_questions": 0,
        "self_study_weight": 0.0,
        "held_out": 0.0,
        "patience": 0,
    },
}


def make_settings(recipe: str = "default", **overrides: Any) -> CompileSettings:
    """The settings of ``recipe`` with ``overrides``; None means "not given".

    Raises:
        InputError: unknown recipe or setting, or a value out of range.
    """
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    known = {field.name for field in fields(CompileSettings)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise InputError(f"unknown setting {unknown[0]!r}; there are {', '.join(sorted(known))}")
    given = {name: value for name, value in overrides.items() if value is not None}
    if "targets" in given:
        _require(not isinstance(given["targets"], str), "targets", given["targets"], "a list of names")
        given["targets"] = tuple(given["targets"])
    try:
        return replace(CompileSettings(**RECIPES[recipe]), **given)
    except TypeError as error:
        raise InputError(f"a setting has the wrong type: {error}") from None


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise InputError(f"{name} is {value}; it must be {expected}")
