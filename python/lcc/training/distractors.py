"""Distractors: memories of other texts that stand around the trained one in some steps.

As in Cartridges at Scale (arXiv 2606.04557): a share of the steps is isolated, and the others have 1, 2, … distractors,
each number as likely as any other. OURS: the distractors are frozen; the trained memory stands at any place among them,
each as likely as any other; and it learns to leave them alone, by questions about their texts, which are to be answered
as each distractor by itself answers them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from ..data.samples import Sample
from ..modeling.kv import KV
from ..utils.random_state import sample_up_to
from .settings import TrainingSettings


@dataclass(frozen=True)
class Distractor:
    """A memory of another text.

    Attributes:
        kv: K and V of its tokens, keys unrotated.
        samples: of the stream ``distractors``: questions about its text, and what it answers alone.
    """

    kv: KV
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Distractors:
    """What stands around the trained memory in one step, in the order of the cache.

    Attributes:
        asked: samples of some of them.
    """

    before: tuple[Distractor, ...] = ()
    behind: tuple[Distractor, ...] = ()
    asked: tuple[Sample, ...] = ()

    def __len__(self) -> int:
        """Tokens of all of them."""
        return sum(len(one.kv) for one in (*self.before, *self.behind))

    def around(self, buffer: KV) -> KV:
        """All memories of the step in a row; ``buffer`` and the result have unrotated keys."""
        return KV.in_a_row([*(one.kv for one in self.before), buffer, *(one.kv for one in self.behind)])


ISOLATED = Distractors()


def draw_distractors(pool: Sequence[Distractor], training: TrainingSettings, rng: random.Random) -> Distractors:
    """Distinct memories of ``pool`` in a random order, the trained one's place among them random too."""
    drawn = rng.sample(pool, rng.randint(1, min(training.max_distractors, len(pool))))
    place = rng.randint(0, len(drawn))
    samples = [sample for one in drawn for sample in one.samples]
    asked = sample_up_to(rng, samples, asked_samples(training))
    return Distractors(tuple(drawn[:place]), tuple(drawn[place:]), tuple(asked))


def asked_samples(training: TrainingSettings) -> int:
    """Questions about distractors in a step that has some: half as many as of the text's own samples."""
    return -(-training.samples // 2) if training.distractor_weight else 0


def most_tokens(lengths: Sequence[int], training: TrainingSettings) -> int:
    """Tokens of the distractors in a step at most, of memories of these lengths."""
    return 0 if training.isolated_share == 1 else sum(nlargest(training.max_distractors, lengths))


def most_asked(pool: Sequence[Distractor], training: TrainingSettings) -> int:
    """Tokens of what distractors are asked in a step at most."""
    lengths = (len(sample.input_ids) for one in pool for sample in one.samples)
    return 0 if training.isolated_share == 1 else sum(nlargest(asked_samples(training), lengths))
