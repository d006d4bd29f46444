"""What a compilation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from ..errors import InputError
from ..utils.values import check, require

# A ratio that is searched for, or a setting that is chosen when it is known what fits.
AUTO = "auto"
Optimizer = Literal["muon", "adamw"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
# Most of whatever is counted, largest number, temperature that logits still divide by, and the seeds that torch takes.
MOST, LARGEST, COLDEST, SEEDS = 10**9, 1e30, 1e-20, range(-(2**63), 2**64)


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
        buffer_init: where the buffer embeddings start, see ``lcc.compilers.buffer_init``.
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
    optimizer: Optimizer = "muon"
    learning_rate: float = 3e-2
    buffer_learning_rate: float = 3e-2
    momentum: float = 0.7
    buffer_init: Literal["vocabulary", "sampled", "even"] = "even"
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
    loss: Literal["kl", "mse"] = "kl"
    coupled: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    engine: Literal["packed", "reference"] = "packed"
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    encode_chunk: int | Literal["auto"] = "auto"
    torch_compile: bool = False
    teacher_gigabytes: float = 4.0
    seed: int = 0

    @property
    def chunk(self) -> int:
        """``encode_chunk`` as a number: 0 for all of the text at once, and while ``auto`` is not settled."""
        return 0 if self.encode_chunk == "auto" else int(self.encode_chunk)

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            InputError: a setting has another type than its field, or is out of range.
        """
        for name, kind in setting_types().items():
            value = getattr(self, name)
            check(name, value, kind)
            if kind is float:
                require(abs(value) < LARGEST, name, value, f"finite, and less than {LARGEST:g}")
                object.__setattr__(self, name, float(value))
            elif type(value) is int and name != "seed":
                require(value <= MOST, name, value, f"{MOST} at most")
        for name in ("steps", "batch", "rank", "max_response_tokens", "evaluate_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        require(self.ratio >= 1, "ratio", self.ratio, "at least 1 (16: one buffer token for 16 tokens of text)")
        for name, least in (("learning_rate", 0), ("alpha", 0), ("self_study_temperature", COLDEST)):
            require(getattr(self, name) > least, name, getattr(self, name), f"more than {least:g}, and finite")
        for name in (
            "buffer_learning_rate", "general_queries", "self_study_questions", "self_study_piece", "patience",
            "teacher_gigabytes",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        require(self.seed in SEEDS, "seed", self.seed, f"from {SEEDS.start} to {SEEDS.stop - 1}")
        weights = (self.reconstruction_weight, self.general_weight, self.self_study_weight)
        require(min(weights) >= 0 < sum(weights), "stream weights", weights, "zero or more, not all zero")
        for name in ("held_out", "momentum"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        shares = (self.self_study_hard, self.self_study_follow_ups)
        plain = 1 - sum(shares)
        possible = min(shares) >= 0 and (plain > 0 or plain == self.self_study_follow_ups == 0)
        wanted = "zero or more, and leave plain questions for conversations to go on from"
        require(possible, "self_study_hard and self_study_follow_ups", shares, wanted)
        require(self.encode_chunk == AUTO or self.chunk >= 0, "encode_chunk", self.encode_chunk, "auto, or 0 or more")
        if self.engine == "reference":
            for name in ("gradient_checkpointing", "encode_chunk", "torch_compile"):
                value = getattr(self, name)
                require(value in (False, AUTO), name, value, "left out with engine='reference', or take 'packed'")


@cache
def setting_types() -> dict[str, Any]:
    """The type of each field of ``CompileSettings``."""
    return get_type_hints(CompileSettings)


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
        InputError: unknown recipe or setting, or a value of another type or out of range.
    """
    if recipe not in list(RECIPES):
        raise InputError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    for name in overrides:
        require_setting(name)
    given = {name: value for name, value in overrides.items() if value is not None}
    if isinstance(given.get("targets"), list):
        given["targets"] = tuple(given["targets"])
    return replace(CompileSettings(**RECIPES[recipe]), **given)


def require_setting(name: str) -> None:
    """Refuse a name that is no setting's.

    Raises:
        InputError: naming the setting that is nearest to it.
    """
    known = setting_types()
    if name not in known:
        near = "".join(f"did you mean {match}? " for match in get_close_matches(name, known, 1))
        raise InputError(f"unknown setting {name!r}; {near}there are {', '.join(sorted(known))}")
