"""kNN over the questions that the memories asked themselves, with a conformal threshold (Cartridges++, section 6.2)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import InputError
from .gating import Gate
from .retrieval import Passages

NEIGHBORS, ALPHA = 10, 0.05


@dataclass(frozen=True)
class Neighborhood:
    """The self-asked questions around a question.

    Attributes:
        votes: the share of the nearest ones that each memory asked.
        nearness: the cosine of the nearest one; -1 if there is none.
    """

    votes: dict[str, float]
    nearness: float


def neighborhood(passages: Passages, vector: torch.Tensor, without: str | None = None) -> Neighborhood:
    """The neighbours of a question.

    Args:
        vector: (width,), of length 1.
        without: a question that is no neighbour of itself.
    """
    others = passages.asked & torch.tensor([body != without for body in passages.bodies], dtype=torch.bool)
    cosines = (passages.vectors @ vector).masked_fill(~others, -math.inf)
    nearest = cosines.topk(min(NEIGHBORS, len(cosines))).indices.tolist()
    found = [index for index in nearest if others[index]]
    counts = Counter(passages.keys[index] for index in found)
    nearness = float(cosines[found[0]]) if found else -1.0
    return Neighborhood({key: count / len(found) for key, count in counts.items()}, nearness)


def conformal_gate(nearness: Sequence[float], alpha: float = ALPHA) -> Gate:
    """Refuses questions that are further away than all but ``alpha`` of those that the memories answer.

    Split conformal prediction: a new question of the same kind is refused with a probability of ``alpha`` at most.

    Args:
        nearness: of self-asked questions to the others.

    Raises:
        InputError: there are too few for ``alpha``.
    """
    rank = math.floor(alpha * (len(nearness) + 1))
    if rank < 1:
        raise InputError(f"{len(nearness)} self-asked questions are too few for a conformal threshold at {alpha:g}")
    return Gate("nearness", sorted(nearness)[rank - 1])
