"""Questions about passages of a text: the model asks itself and answers from the text; others are compared."""

from __future__ import annotations

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


def same_answers(
    reader: Reader, others: Mapping[str, Sequence[Reader]], questions: Sequence[Question]
) -> dict[str, list[bool]]:
    """Whether each of ``others`` answers each question as ``reader`` does, case and punctuation apart.

    Args:
        others: of several readers under one name, one that does is enough.
    """
    requests = [question.example.request for question in questions]
    told = reader.answer(requests)

    def same(other: Reader) -> list[bool]:
        return [bool(exact_match(one, (full,))) for one, full in zip(other.answer(requests), told, strict=True)]

    return {name: [any(found) for found in zip(*map(same, each), strict=True)] for name, each in others.items()}
