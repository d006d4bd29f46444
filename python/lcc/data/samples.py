"""What distillation data is: queries, the teacher's responses, and its hidden states where they are predicted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling.scoring import Completion
from ..text.chat_format import Query

STREAMS = ("reconstruction", "general", "self_study", "rehearsal", "distractors")


@dataclass(frozen=True)
class Sample(Completion):
    """One query, the teacher's response, and the teacher's hidden states for the response tokens.

    Attributes:
        stream: one of ``STREAMS``.
        teacher_hidden: (response tokens, H), last hidden states where each response token is predicted. Empty until
            they are computed.
        weight: sampling weight within the stream.
    """

    stream: str = "general"
    query: Query = ""
    teacher_hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0), compare=False)
    weight: float = 1.0


@dataclass(frozen=True)
class DistillationData:
    """All samples of a text: the reconstruction, the queries that are trained on, and those that are held out.

    Attributes:
        reconstruction: a sample for each piece of the text; see ``lcc.data.reconstruction``.
        asking: what came of asking itself, as ``lcc.data.self_study.Yield`` has it; None if the model did not.
    """

    reconstruction: tuple[Sample, ...]
    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    asking: dict[str, Any] | None = None

    @property
    def self_questions(self) -> frozenset[Query]:
        """The questions that the model asked itself, held-out ones included."""
        return frozenset(s.query for s in self.train + self.held_out if s.stream == "self_study")
