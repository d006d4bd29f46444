"""Makes the distillation data: what the teacher is asked about the text, and what it answers (LCC section 3.4).

There are three streams. *Reconstruction* is "please repeat the context", as a whole or piece by piece. *General* are
context-agnostic queries. *Self-study* are questions that the frozen model itself asks about the text. An update has a
fourth, *rehearsal*: questions that the old memory carries are asked again. The text itself is the response of the
reconstruction. What is rehearsed is answered by the old memory alone, which says less where more text stands behind it.
All other responses are the full-context teacher's own. Responses are generated once, greedily.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from transformers import PreTrainedModel

from ..modeling.kv import KV
from ..modeling.window import check_window
from ..text.context import Context
from ..text.queries import SELF
from ..utils.progress import Report
from ..utils.random_state import sample_up_to
from .own_queries import own_queries
from .parts import Parts
from .reconstruction import repetitions
from .samples import STREAMS, DistillationData, Sample
from .self_study import self_study
from .settings import DataSettings
from .teacher import Teacher
from .teacher_states import TeacherStates


def synthesize(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    settings: DataSettings,
    queries: Sequence[str] | str,
    seed: int,
    report: Report,
    states: TeacherStates,
    parts: Parts | None = None,
    wider: KV | None = None,
) -> DistillationData:
    """Draw the queries, let the model ask its own, and let the teacher respond.

    Args:
        model: frozen, no adapter active.
        text_kv: K and V of [P | C], rotated; of a text with a past those of [P | past | C].
        queries: context-agnostic queries to draw from; or ``SELF``.
        states: holds the teacher's hidden states.
        parts: where what the model writes is kept, for a run that goes on.
        wider: see ``Teacher``.

    Raises:
        InputError: a general query is too long for the model's window.
        MemoryFileError: teacher states fit neither into memory nor on disk.
    """
    rng = random.Random(seed)
    teacher = Teacher(model, context, text_kv, settings.max_response_tokens, states, parts, wider=wider)
    if queries == SELF:
        general = own_queries(teacher, settings.general_queries, seed, report)
    else:
        general = _draw(queries, settings.general_queries, rng)
    _check_general(model, context, len(text_kv), general, settings)
    samples = teacher.answer(
        "general", dict.fromkeys(general, 1.0), lambda done: report("teacher responses", done, len(general))
    )
    asking = None
    if settings.asked:
        asked, asking = self_study(teacher, settings, seed, report)
        samples += asked
    samples += _rehearsal(teacher, settings, seed, report)
    reconstruction = tuple(teacher.taught(repetitions(context, settings)))
    rng.shuffle(samples)
    held_out = hold_out(samples, settings.held_out)
    train = tuple(sample for sample in samples if sample not in held_out)
    return DistillationData(reconstruction, train, tuple(held_out), asking)


def _rehearsal(teacher: Teacher, settings: DataSettings, seed: int, report: Report) -> list[Sample]:
    """Some of the questions that the past carries, answered from the past; none without a past."""
    past, chat, room = teacher.context.past, teacher.chat, teacher.room(teacher.text_kv)
    fitting = [query for query in (past.questions if past else ()) if len(chat.query_ids(query)) <= room]
    asked = sample_up_to(random.Random(f"{seed} rehearsal"), fitting, settings.rehearsal_questions)

    def show(done: int) -> None:
        report("rehearsing", done, len(asked))

    return teacher.answer("rehearsal", dict.fromkeys(asked, 1.0), show, teacher.before_kv)


def _draw(queries: Sequence[str], count: int, rng: random.Random) -> list[str]:
    distinct = list(dict.fromkeys(queries))
    return sample_up_to(rng, distinct, count)


def _check_general(
    model: PreTrainedModel, context: Context, past: int, queries: Sequence[str], settings: DataSettings
) -> None:
    longest = max((len(context.chat.query_ids(query)) for query in queries), default=0)
    end = past + context.buffer + longest + settings.max_response_tokens
    check_window(model, end, "text, memory and the longest general query", "leave long queries out")


def hold_out(samples: Sequence[Sample], share: float) -> list[Sample]:
    """The first ``share`` of each stream's samples; of self-study first those whose response another sample trains."""
    held_out: list[Sample] = []
    for stream in STREAMS:
        of_stream = [sample for sample in samples if sample.stream == stream]
        if stream == "self_study":
            of_stream = _taught_elsewhere_first(of_stream)
        held_out += of_stream[: int(len(of_stream) * share)]
    return held_out


def _taught_elsewhere_first(samples: Sequence[Sample]) -> list[Sample]:
    """The last sample of each distinct response comes last: training keeps it, and loses no answer."""
    last = {sample.response_ids: sample.query for sample in samples}
    return sorted(samples, key=lambda sample: last[sample.response_ids] == sample.query)
