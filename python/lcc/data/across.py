"""Questions for which the model has to read two sections of a text: it asks itself about a piece of each, put together.

A question is kept if the answer of a teacher that reads both sections hangs on both: with either of them alone it is
another one.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

from ..text.context import Context
from ..utils.progress import Report
from ..utils.random_state import sample_up_to
from .askers import HARD
from .samples import Sample
from .self_study import Part, SelfStudy, chosen_asker, pieces_of
from .settings import DataSettings
from .teacher import Teacher

# Couples of pieces that questions are asked about, for each question that is wanted.
COUPLES = 4


def ask_across(
    teacher: Teacher, first: Context, second: Context, settings: DataSettings, seed: int, report: Report
) -> list[Sample]:
    """Up to ``across_questions`` samples of the stream ``across``, with the teacher's responses.

    Args:
        teacher: has read both sections, and tells which answers hang on both.
    """
    asker = chosen_asker(teacher, settings, seed)
    study = SelfStudy(teacher, settings, asker, seed, report)
    pieces = [pieces_of(section, asker, settings.self_study_piece) for section in (first, second)]
    couples = sample_up_to(
        random.Random(f"{seed} couples"), list(product(*pieces)), COUPLES * settings.across_questions
    )
    parts = [Part(f"{a.name} with {b.name}", (*(a.piece or ()), *(b.piece or ()))) for a, b in couples]
    found = study.gather(HARD, parts, settings.across_questions)
    return [replace(one.sample, stream="across") for one in found.values()]
