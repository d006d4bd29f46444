"""Self-gating: whether a memory answers a question at all, or the plain model does (CDLM, arXiv 2605.28889)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from ..errors import InputError
from ..utils.values import check, require

Signal = Literal["entropy", "divergence", "likeness", "score"]
# Signals that are low where the memory answers.
LOW: tuple[Signal, ...] = ("entropy",)
MOST_POINTS = 50


@dataclass(frozen=True)
class Gate:
    """A threshold on one signal of the candidate that was routed to.

    Attributes:
        signal: ``entropy`` of the first token, which is low where the memory answers (CDLM); ``divergence`` from the
            plain model's first token, ``likeness`` to a question that the memory asked itself, or the router's
            ``score``, which are high there.
        threshold: in the signal's unit: nats of an entropy or a divergence, a cosine of a likeness.

    Raises:
        InputError: an unknown signal, or a threshold that is NaN.
    """

    signal: Signal
    threshold: float

    def __post_init__(self) -> None:
        require(self.signal in get_args(Signal), "gate", self.signal, f"one of {', '.join(get_args(Signal))}")
        check("threshold", self.threshold, float)
        require(not math.isnan(self.threshold), "threshold", self.threshold, "a number")

    def accepts(self, value: float) -> bool:
        """Whether a candidate with this value of the signal answers. NaN never does."""
        return value < self.threshold if self.signal in LOW else value > self.threshold


# The paper's extremes: lambda is infinite, or 0; an entropy is never below 0.
ALWAYS, NEVER = Gate("entropy", math.inf), Gate("entropy", 0.0)


@dataclass(frozen=True)
class Fit:
    """A gate that was fitted, and how well it tells the two sides of held-out questions apart.

    Attributes:
        gate: with the threshold of the best balanced accuracy on the questions that it was fitted on.
        accuracy: balanced, on held-out questions: the mean of the shares of both sides that are told right.
        kept, refused: those shares: of the questions that a memory answers, and of those that none does.
        area: under the ROC of the held-out questions.
        roc: its points, (share of the others that are kept, share of the answered ones that are kept).
        count: held-out questions of the two sides.
    """

    gate: Gate
    accuracy: float
    kept: float
    refused: float
    area: float
    roc: tuple[tuple[float, float], ...]
    count: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Fit:
        """What ``to_dict`` gave."""
        pairs = {"roc": tuple((x, y) for x, y in stored["roc"]), "count": tuple(stored["count"])}
        return cls(**stored | pairs | {"gate": Gate(**stored["gate"])})


def fit(
    signal: Signal,
    answered: Sequence[float],
    others: Sequence[float],
    held_answered: Sequence[float],
    held_others: Sequence[float],
) -> Fit:
    """Choose the threshold by balanced accuracy, and measure it on held-out questions.

    Args:
        answered, others: the signal's values of questions that the memory answers, and of those that it does not.
        held_answered, held_others: of questions that take no part in the choice.

    Raises:
        InputError: a side has no question.
    """
    if not all((answered, others, held_answered, held_others)):
        raise InputError(
            "the gate has too few questions to be fitted on: add memories that carry self-asked questions (compilers "
            "lcc and direct_kv), or unrelated questions"
        )
    chosen = max(_thresholds(answered, others), key=lambda x: _shares(Gate(signal, x), answered, others)[0])
    gate = Gate(signal, chosen)
    accuracy, kept, refused = _shares(gate, held_answered, held_others)
    roc = _roc(signal, held_answered, held_others)
    return Fit(gate, accuracy, kept, refused, _area(roc), roc, (len(held_answered), len(held_others)))


def _thresholds(answered: Sequence[float], others: Sequence[float]) -> list[float]:
    """Halfway between each two neighbouring values, and a bit beyond both ends."""
    values = sorted({value for value in (*answered, *others) if math.isfinite(value)}) or [0.0]
    between = [(low + high) / 2 for low, high in pairwise(values)]
    return [values[0] - 1, *between, values[-1] + 1]


def _shares(gate: Gate, answered: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Balanced accuracy, share of the answered that are kept, and share of the others that are refused."""
    kept = sum(map(gate.accepts, answered)) / len(answered)
    refused = 1 - sum(map(gate.accepts, others)) / len(others)
    return (kept + refused) / 2, kept, refused


def _roc(signal: Signal, answered: Sequence[float], others: Sequence[float]) -> tuple[tuple[float, float], ...]:
    thresholds = _thresholds(answered, others)
    spread = sorted(thresholds)[:: max(1, len(thresholds) // MOST_POINTS)]
    points = {(0.0, 0.0), (1.0, 1.0)}
    for threshold in spread:
        _, kept, refused = _shares(Gate(signal, threshold), answered, others)
        points.add((1 - refused, kept))
    return tuple(sorted(points))


def _area(roc: Sequence[tuple[float, float]]) -> float:
    """By the trapezoidal rule."""
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(roc))
