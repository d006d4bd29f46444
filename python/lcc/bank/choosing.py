"""Which candidates of a question answer it, if any does: a router orders them, and a gate lets them pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .gating import ALWAYS, LOW, NEVER, Gate
from .neighbors import Neighborhood
from .routing import Router
from .signals import Candidate

UNITS = {"entropy": " nats", "divergence": " nats"}


@dataclass(frozen=True)
class Considered:
    """A candidate with its score, as an answer reports it; see ``Candidate``."""

    key: str
    similarity: float
    entropy: float
    divergence: float
    likeness: float
    score: float


def scored(router: Router, candidates: Sequence[Candidate], neighborhood: Neighborhood) -> tuple[Considered, ...]:
    """The candidates of one question with their scores, in the same order."""
    return tuple(
        Considered(one.key, one.similarity, one.entropy, one.divergence, one.likeness, score)
        for one, score in zip(candidates, router.scores(candidates, neighborhood), strict=True)
    )


@dataclass(frozen=True)
class Decision:
    """What was decided about a question.

    Attributes:
        chosen: numbers of the candidates that answer, the best first; empty: none does.
        best: the number of the candidate that was routed to, whether it answers or not; None: there was none.
        reason: in words.
        considered: all candidates, in the retriever's order.
    """

    chosen: tuple[int, ...]
    best: int | None
    reason: str
    considered: tuple[Considered, ...]


@dataclass(frozen=True)
class Chooser:
    """A router and a gate.

    Attributes:
        together: how many memories may answer side by side.
    """

    router: Router
    gate: Gate
    together: int = 1

    @property
    def looks(self) -> bool:
        """Whether the router or the gate looks at a question's neighborhood."""
        return self.router.looks or self.gate.signal == "likeness"

    def choose(self, candidates: Sequence[Candidate], neighborhood: Neighborhood) -> Decision:
        """Decide about a question.

        Args:
            neighborhood: of the question; an empty one unless ``looks``.
        """
        considered = scored(self.router, candidates, neighborhood)
        if not candidates:
            reason = "the gate never opens" if self.gate == NEVER else "the retriever found no memory"
            return Decision((), None, reason, ())
        order = sorted(range(len(considered)), key=lambda index: -considered[index].score)
        signals = [getattr(considered[index], self.gate.signal) for index in order]
        passed = [index for index, signal in zip(order, signals, strict=True) if self.gate.accepts(signal)]
        told = passed[0] if passed else order[0]
        reason = f"{considered[told].key} is {self.router.said}; {self._told(signals[order.index(told)])}"
        return Decision(tuple(passed[: self.together]), order[0], reason, considered)

    def _told(self, value: float) -> str:
        """What the gate says of the candidate that was routed to."""
        gate = self.gate
        if gate == ALWAYS:
            return "there is no gate"
        side = ("" if gate.accepts(value) else "not ") + ("below" if gate.signal in LOW else "above")
        return f"its {gate.signal} {value:.3g}{UNITS.get(gate.signal, '')} is {side} {gate.threshold:.3g}"
