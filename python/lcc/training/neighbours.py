"""Sections of one text that are trained together: what stands around each is all the others, as they are now."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..data.samples import Sample, SectionedData
from ..modeling.kv import KV
from ..utils.random_state import sample_up_to
from .distractors import Company, Distractor, Distractors
from .settings import ExecutionSettings, TrainingSettings
from .student import encoded
from .trainable import TrainableMemory


class Row:
    """The memories of all sections in the text's order, each encoded again when it has moved and is read."""

    def __init__(self, memories: Sequence[TrainableMemory], execution: ExecutionSettings):
        self._memories, self._execution = memories, execution
        self._encoded: dict[int, KV] = {}

    def __len__(self) -> int:
        return len(self._memories)

    def moved(self, number: int) -> None:
        """Forget what the memory of that section was."""
        self._encoded.pop(number, None)

    @torch.no_grad()
    def distractor(self, number: int) -> Distractor:
        """A section's memory as the others see it: no gradient goes there."""
        if number not in self._encoded:
            self._encoded[number] = encoded(self._memories[number], self._execution)
        return Distractor(self._encoded[number])


class Neighbours(Company):
    """The company of one section: all others, at the places that they have in the text.

    In a step they are asked about as follows: one quarter of a batch are questions that take this section and another
    one, and one quarter are questions about other sections alone.
    """

    def __init__(self, number: int, row: Row, data: SectionedData, training: TrainingSettings, tokens: Sequence[int]):
        """Args: ``tokens``: buffer tokens of each section."""
        self._number, self._row = number, row
        self._across = [sample for one in data.across if number in one.pair for sample in one.train]
        self._others = [_as_distractor(s) for s in _asked(data, number)] if training.distractor_weight else []
        if not training.across_weight:
            self._across = []
        self._quarter = -(-training.samples // 4)
        longest = [max((len(s.input_ids) for s in some), default=0) for some in (self._across, self._others)]
        alone = training.isolated_share == 1
        self.tokens = 0 if alone else sum(tokens) - tokens[number]
        self.asked_tokens = 0 if alone else self._quarter * sum(longest)

    def draw(self, rng: random.Random) -> Distractors:
        """All others in order."""
        row = [self._row.distractor(number) if number != self._number else None for number in range(len(self._row))]
        asked = [sample for some in (self._across, self._others) for sample in sample_up_to(rng, some, self._quarter)]
        before, behind = row[: self._number], row[self._number + 1 :]
        return Distractors(tuple(filter(None, before)), tuple(filter(None, behind)), tuple(asked))

    def moved(self) -> None:
        """The others are to see this section as it is now."""
        self._row.moved(self._number)


def _asked(data: SectionedData, number: int) -> list[Sample]:
    """What is asked about the other sections alone."""
    others = [one for place, one in enumerate(data.sections) if place != number]
    return [sample for one in others for sample in one.train if sample.stream == "self_study"]


def _as_distractor(sample: Sample) -> Sample:
    return replace(sample, stream="distractors")
