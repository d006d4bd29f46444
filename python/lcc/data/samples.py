"""What distillation data is: queries, the teacher's responses, and its hidden states where they are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling.scoring import Completion
from ..text.chat_format import Query

STREAMS = ("reconstruction", "general", "self_study", "across", "rehearsal", "distractors")
# Those of questions that the model asked itself about the text.
SELF_ASKED = ("self_study", "across")


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
class Across:
    """Questions for which the model has to read two sections of a text.

    Attributes:
        pair: the numbers of the sections, in the text's order.
        train, held_out: samples of the stream ``across``; the teacher has read the two sections.
    """

    pair: tuple[int, int]
    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]


@dataclass(frozen=True)
class DistillationData:
    """All samples of a text: the reconstruction, the queries that are trained on, and those that are held out.

    Attributes:
        reconstruction: a sample for each piece of the text; see ``lcc.data.reconstruction``.
        asking: what came of asking itself, as ``lcc.data.self_study.Yield`` has it; None if the model did not.
        sections: of a text in sections, the data of each, all of which is in this one too.
        across: of such a text, what was asked about pairs of sections; that is in this one too.
    """

    reconstruction: tuple[Sample, ...]
    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    asking: dict[str, Any] | None = None
    sections: tuple[DistillationData, ...] = ()
    across: tuple[Across, ...] = ()

    @classmethod
    def of_sections(cls, sections: Sequence[DistillationData], across: Sequence[Across]) -> DistillationData:
        """The data of a text in sections."""
        every: list[DistillationData | Across] = [*sections, *across]
        return cls(
            tuple(sample for own in sections for sample in own.reconstruction),
            tuple(sample for own in every for sample in own.train),
            tuple(sample for own in every for sample in own.held_out),
            _asking(sections),
            tuple(sections),
            tuple(across),
        )

    @property
    def self_questions(self) -> frozenset[Query]:
        """The questions that the model asked itself, held-out ones included."""
        return frozenset(s.query for s in self.train + self.held_out if s.stream in SELF_ASKED)


def _asking(sections: Sequence[DistillationData]) -> dict[str, Any] | None:
    """What came of asking itself about all sections."""
    results = [own.asking for own in sections if own.asking]
    if not results:
        return None
    counts = {name: sum(one[name] for one in results) for name in results[0] if name != "asker"}
    return {"asker": results[0]["asker"]} | counts
