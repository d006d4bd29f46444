"""kNN over the questions that the memories asked themselves, with a conformal threshold (Cartridges++, section 6.2)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .gating import Gate
from .retrieval import Passages

NEIGHBORS, ALPHA = 10, 0.05
# The least cosine.
NOWHERE = -1.0


@dataclass(frozen=True)
class Neighborhood:
    """The self-asked questions around a question.

    Attributes:
        votes: the share of the nearest ones that each memory asked.
        likeness: the cosine of the nearest one that each memory asked.
    """

    votes: dict[str, float]
    likeness: dict[str, float]

    def of(self, key: str) -> float:
        """How near a memory's nearest question is; -1 if it asked itself none."""
        return self.likeness.get(key, NOWHERE)


# Nobody around.
NOBODY = Neighborhood({}, {})


def neighborhood(passages: Passages, vector: torch.Tensor, without: str | None = None) -> Neighborhood:
    """The neighbours of a question.

    Args:
        vector: (width,), of length 1.
        without: a question that is no neighbour of itself.
    """
    others = passages.asked if without is None else passages.asked & (passages.numbers != passages.number_of(without))
    if not bool(others.any()):
        return NOBODY
    cosines = (passages.vectors @ vector).masked_fill(~others, NOWHERE)
    nearest = cosines.topk(min(NEIGHBORS, int(others.sum()))).indices.tolist()
    counts = Counter(passages.keys[index] for index in nearest)
    best = cosines.new_full((len(passages.documents),), NOWHERE).scatter_reduce(0, passages.owners, cosines, "amax")
    likeness = {key: value for key, value in zip(passages.documents, best.tolist(), strict=True) if value > NOWHERE}
    return Neighborhood({key: count / len(nearest) for key, count in counts.items()}, likeness)


def conformal_gate(likeness: Sequence[float], alpha: float = ALPHA) -> Gate:
    """Refuses questions that are less alike than all but ``alpha`` of those that the memories answer.

    Split conformal prediction: a new question of the same kind is refused with a probability of ``alpha`` at most.

    Where there are too few questions for ``alpha``, none is refused.

    Args:
        likeness: of self-asked questions to others of the same memory.
    """
    rank = math.floor(alpha * (len(likeness) + 1))
    return Gate("likeness", sorted(likeness)[rank - 1] if rank else NOWHERE)
