"""Questions about passages of a text: the model asks itself and answers from the text; others are compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..data.samples import Sample
from ..data.self_study import self_study
from ..data.settings import DataSettings
from ..data.teacher import Teacher
from ..data.teacher_states import TeacherStates
from ..inference.reader import Reader
from ..text.context import Context
from ..utils.progress import Report
from .certificate import Question, held_out_questions
from .metrics import exact_match

# Questions about a passage, at most.
QUESTIONS = 12
# Tokens of an answer.
LONGEST = 32


def passage_questions(reader: Reader, passages: Sequence[Sequence[int]], seed: int, report: Report) -> list[Question]:
    """Questions about each passage that ``reader``, behind the text, asks itself and settles.

    Args:
        passages: their tokens.
    """
    settings = DataSettings(
        self_study_questions=QUESTIONS, self_study_hard=0.0, self_study_follow_ups=0.0, max_response_tokens=LONGEST
    )
    asked: dict[object, Sample] = {}
    for passage in passages:
        # Asked about the passage alone, and answered from the whole text.
        context = Context(reader.chat, tuple(reader.chat.prefix_ids), tuple(passage), 0, "")
        teacher = Teacher(reader.model, context, reader.visible, LONGEST, TeacherStates(float("inf")))
        samples, _ = self_study(teacher, settings, seed, report)
        asked |= {sample.query: sample for sample in samples}
    return held_out_questions(list(asked.values()), reader, LONGEST)


def same_answers(reader: Reader, others: Mapping[str, Reader], questions: Sequence[Question]) -> dict[str, float]:
    """The share of questions that each of ``others`` answers as ``reader`` does, case and punctuation apart."""
    requests = [question.example.request for question in questions]
    told = reader.answer(requests)
    return {
        name: statistics.fmean(
            exact_match(one, (full,)) for one, full in zip(other.answer(requests), told, strict=True)
        )
        for name, other in others.items()
    }
