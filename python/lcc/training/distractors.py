"""Distractors: memories of other texts that stand around the trained one in some steps.

As in Cartridges at Scale (arXiv 2606.04557): a share of the steps is isolated, and the others have 1, 2, … distractors,
each number as likely as any other. OURS: the distractors are frozen, and the trained memory stands at any place among
them, each as likely as any other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from heapq import nlargest

from ..modeling.kv import KV
from .settings import TrainingSettings


@dataclass(frozen=True)
class Distractors:
    """What stands around the trained memory in one step, keys unrotated, in the order of the cache."""

    before: tuple[KV, ...] = ()
    behind: tuple[KV, ...] = ()

    def __len__(self) -> int:
        """Tokens of all of them."""
        return sum(map(len, (*self.before, *self.behind)))

    def around(self, buffer: KV) -> KV:
        """All memories of the step in a row; ``buffer`` and the result have unrotated keys."""
        return reduce(lambda row, memory: memory.after(row), (*self.before, buffer, *self.behind))


ISOLATED = Distractors()


def draw_distractors(pool: Sequence[KV], training: TrainingSettings, rng: random.Random) -> Distractors:
    """Distinct memories of ``pool`` in a random order, the trained one's place among them random too."""
    drawn = rng.sample(pool, rng.randint(1, min(training.max_distractors, len(pool))))
    place = rng.randint(0, len(drawn))
    return Distractors(tuple(drawn[:place]), tuple(drawn[place:]))


def most_tokens(lengths: Sequence[int], training: TrainingSettings) -> int:
    """Tokens of the distractors in a step at most, of memories of these lengths."""
    return 0 if training.isolated_share == 1 else sum(nlargest(training.max_distractors, lengths))
