"""Makes the distillation data: what the teacher is asked about the text, and what it answers (LCC section 3.4).

There are three streams. *Reconstruction* is one sample, "please repeat the context". *General* are context-agnostic
queries. *Self-study* are questions that the frozen model itself asks about the text. The text itself is the response of
the reconstruction. All other responses are the full-context teacher's own, generated once, greedily.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from ..modeling.generation import batch_rows, greedy_responses
from ..modeling.kv import KV
from ..modeling.scoring import completion_states
from ..modeling.window import check_window
from ..text.chat_format import Query
from ..text.context import Context
from ..text.prompts import REPEAT_REQUEST
from ..utils.progress import Report
from ..utils.random_state import sample_up_to
from .samples import STREAMS, DistillationData, Sample
from .self_study import ask_questions
from .settings import DataSettings
from .teacher_states import TeacherStates


def synthesize(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    settings: DataSettings,
    queries: Sequence[str],
    seed: int,
    report: Report,
    states: TeacherStates,
) -> DistillationData:
    """Draw the queries, let the model ask its own, and let the teacher respond.

    Args:
        model: frozen, no adapter active.
        text_kv: K and V of [P | C], rotated.
        queries: context-agnostic queries to draw from.
        states: holds the teacher's hidden states.

    Raises:
        InputError: a general query is too long for the model's window.
        MemoryFileError: teacher states fit neither into memory nor on disk.
    """
    rng = random.Random(seed)
    general = _draw(queries, settings.general_queries, rng)
    _check_general(model, context, len(text_kv), general, settings)
    weights: dict[str, Mapping[Query, float]] = {"general": dict.fromkeys(general, 1.0)}
    if settings.self_study_questions:
        weights["self_study"] = ask_questions(model, context, text_kv, settings, seed, report)
    unanswered = [
        Sample(tuple(context.chat.query_ids(query)), (), stream, query, weight=weight)
        for stream, queries_of_stream in weights.items()
        for query, weight in queries_of_stream.items()
    ]
    samples = _respond(model, context, text_kv, unanswered, settings, report)
    repeat = Sample(
        tuple(context.chat.query_ids(REPEAT_REQUEST)),
        (*context.context_ids, context.chat.end),
        "reconstruction",
        REPEAT_REQUEST,
    )
    *samples, reconstruction = _teach(model, text_kv, [*samples, repeat], states)
    rng.shuffle(samples)
    held_out = _hold_out(samples, settings.held_out)
    train = tuple(sample for sample in samples if sample not in held_out)
    return DistillationData(reconstruction, train, tuple(held_out))


def _draw(queries: Sequence[str], count: int, rng: random.Random) -> list[str]:
    distinct = list(dict.fromkeys(queries))
    return sample_up_to(rng, distinct, count)


def _check_general(
    model: PreTrainedModel, context: Context, past: int, queries: Sequence[str], settings: DataSettings
) -> None:
    longest = max((len(context.chat.query_ids(query)) for query in queries), default=0)
    end = past + context.buffer + longest + settings.max_response_tokens
    check_window(model, end, "text, memory and the longest general query", "leave long queries out")


def _respond(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    samples: list[Sample],
    settings: DataSettings,
    report: Report,
) -> list[Sample]:
    """Give each sample the teacher's greedy response, end token included."""
    answered: list[Sample] = []
    queries = [sample.query_ids for sample in samples]
    for batch in greedy_responses(model, text_kv, queries, settings.max_response_tokens, context.chat.end):
        chunk = samples[len(answered) : len(answered) + len(batch)]
        answered += [replace(s, response_ids=response) for s, response in zip(chunk, batch, strict=True)]
        report("teacher responses", len(answered), len(samples))
    return answered


def _teach(model: PreTrainedModel, text_kv: KV, samples: list[Sample], states: TeacherStates) -> list[Sample]:
    """Give each sample the teacher's hidden states where its response is predicted."""
    taught: list[Sample] = []
    rows = batch_rows(len(text_kv))
    for start in range(0, len(samples), rows):
        chunk = samples[start : start + rows]
        with torch.no_grad():
            hidden = states.keep(completion_states(model, text_kv, chunk))
        sizes = [len(sample.response_ids) for sample in chunk]
        taught += [replace(s, teacher_hidden=h) for s, h in zip(chunk, hidden.split(sizes), strict=True)]
    return taught


def _hold_out(samples: Sequence[Sample], share: float) -> list[Sample]:
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
