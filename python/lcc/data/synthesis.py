"""The surrogate data: what the teacher is asked about the text, and what it answers (LCC section 3.4).

Three streams. *Reconstruction*: one sample, "please repeat the context". *General*: context-agnostic queries.
*Self-study*: questions that the frozen model itself asks about the text. All responses but the reconstruction's are
the full-context teacher's own, generated once, greedily.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..modeling.generation import batch_rows, greedy_responses
from ..modeling.kv import KV, decoder
from ..modeling.module_patching import mlp_on
from ..modeling.window import check_window
from ..pipeline.settings import CompileSettings
from ..text.chat_format import Query
from ..text.context import Context
from .self_study import Progress, ask_questions
from .teacher_states import TeacherStates

REPEAT_REQUEST = "Please repeat the context."
STREAMS = ("reconstruction", "general", "self_study")


@dataclass(frozen=True)
class Sample:
    """One query with its response, and what the teacher thinks while it writes it.

    Attributes:
        query_ids: from the end of the text to the start of the response.
        response_ids: the response and its end token; each is supervised.
        teacher_hidden: (response tokens, H), the teacher's last hidden state where each is predicted; empty until it
            is known.
        weight: how likely the sample is drawn, of its stream's.
    """

    stream: str
    query: Query
    query_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    teacher_hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0), compare=False)
    weight: float = 1.0

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The tokens that predict the response: the query and all of the response but its end."""
        return self.query_ids + self.response_ids[:-1]


@dataclass(frozen=True)
class Surrogate:
    """All samples; queries split into those trained on and those held out."""

    reconstruction: Sample
    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]

    @property
    def self_questions(self) -> frozenset[Query]:
        """The questions that the model asked itself, held-out ones included."""
        return frozenset(s.query for s in self.train + self.held_out if s.stream == "self_study")


def build_surrogate(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    settings: CompileSettings,
    queries: Sequence[str],
    progress: Progress,
    folder: Path | None = None,
) -> Surrogate:
    """Draw the queries, let the model ask its own, and let the teacher respond.

    Args:
        model: frozen, no adapter active.
        text_kv: K and V of [P | C], rotated.
        progress: called with (what, done, total).
        folder: where teacher states go that are too many to hold.

    Raises:
        InputError: there is no sample to train on, or a general query is too long for the model's window.
        MemoryFileError: teacher states fit neither into memory nor on disk.
    """
    rng = random.Random(settings.seed)
    general = _draw(queries, settings.general_queries, rng) if settings.general_weight else []
    _check_general(model, context, len(text_kv), general, settings)
    asked: dict[str, Mapping[Query, float]] = {"general": dict.fromkeys(general, 1.0)}
    if settings.self_study_questions and settings.self_study_weight:
        asked["self_study"] = ask_questions(model, context, text_kv, settings, progress)
    unanswered = [
        Sample(stream, query, tuple(context.chat.query_ids(query)), (), weight=weight)
        for stream, weights in asked.items()
        for query, weight in weights.items()
    ]
    samples = _respond(model, context, text_kv, unanswered, settings, progress)
    repeat = Sample(
        "reconstruction",
        REPEAT_REQUEST,
        tuple(context.chat.query_ids(REPEAT_REQUEST)),
        (*context.context_ids, context.chat.end),
    )
    states = TeacherStates(int(settings.teacher_gigabytes * 2**30), folder)
    samples = _teach(model, text_kv, [*samples, repeat], states)
    reconstruction = samples.pop()
    rng.shuffle(samples)
    held_out = _hold_out(samples, settings.held_out)
    train = tuple(sample for sample in samples if sample not in held_out)
    if not train and not settings.reconstruction_weight:
        raise InputError(
            "there is no sample to train on: raise general_queries, self_study_questions or reconstruction_weight"
        )
    return Surrogate(reconstruction, train, tuple(held_out))


def _draw(queries: Sequence[str], count: int, rng: random.Random) -> list[str]:
    distinct = list(dict.fromkeys(queries))
    return rng.sample(distinct, min(count, len(distinct)))


def _check_general(
    model: PreTrainedModel, context: Context, past: int, queries: Sequence[str], settings: CompileSettings
) -> None:
    longest = max((len(context.chat.query_ids(query)) for query in queries), default=0)
    end = past + context.buffer + longest + settings.max_response_tokens
    check_window(model, end, "text, memory and the longest general query", "leave long queries out")


def _respond(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    samples: list[Sample],
    settings: CompileSettings,
    progress: Progress,
) -> list[Sample]:
    """Give each sample the teacher's greedy response, end token included."""
    answered: list[Sample] = []
    queries = [sample.query_ids for sample in samples]
    for batch in greedy_responses(model, text_kv, queries, settings.max_response_tokens, context.chat.end):
        chunk = samples[len(answered) : len(answered) + len(batch)]
        answered += [replace(s, response_ids=response) for s, response in zip(chunk, batch, strict=True)]
        progress("teacher responses", len(answered), len(samples))
    return answered


def _teach(model: PreTrainedModel, text_kv: KV, samples: list[Sample], states: TeacherStates) -> list[Sample]:
    """Give each sample the teacher's hidden states where its response is predicted."""
    taught: list[Sample] = []
    rows = batch_rows(len(text_kv))
    for start in range(0, len(samples), rows):
        chunk = samples[start : start + rows]
        with torch.no_grad():
            hidden = states.keep(response_hidden(model, text_kv, chunk))
        sizes = [len(sample.response_ids) for sample in chunk]
        taught += [replace(s, teacher_hidden=h) for s, h in zip(chunk, hidden.split(sizes), strict=True)]
    return taught


def response_hidden(model: PreTrainedModel, visible: KV, samples: Sequence[Sample]) -> torch.Tensor:
    """Last hidden states where the samples' responses are predicted, after the rotated tokens of ``visible``.

    Returns:
        (supervised tokens of all samples, H), sample by sample. Each sample sees ``visible`` and itself alone.
    """
    length = max(len(sample.input_ids) for sample in samples)
    ids = [[*sample.input_ids, *[0] * (length - len(sample.input_ids))] for sample in samples]
    # Padding stands on the right of every token that is read: causality alone keeps it out of sight.
    positions = torch.arange(len(visible), len(visible) + length, device=model.device)
    chosen = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, sample in enumerate(samples):
        chosen[row, len(sample.query_ids) - 1 : len(sample.input_ids)] = True
    read = chosen.flatten().nonzero()[:, 0].to(model.device)
    with mlp_on(decoder(model).layers[-1], read):
        hidden = decoder(model)(
            input_ids=torch.tensor(ids, device=model.device),
            position_ids=positions[None],
            past_key_values=visible.cache(),
        ).last_hidden_state
    return hidden.flatten(0, 1)[read]


def _hold_out(samples: Sequence[Sample], share: float) -> list[Sample]:
    """``share`` of each stream's samples; of self-study those first whose response another one teaches.

    What only one question asks for would be lost with that question.
    """
    kept: list[Sample] = []
    for stream in STREAMS:
        mine = [sample for sample in samples if sample.stream == stream]
        if stream == "self_study":
            mine = _taught_elsewhere_first(mine)
        kept += mine[: int(len(mine) * share)]
    return kept


def _taught_elsewhere_first(samples: Sequence[Sample]) -> list[Sample]:
    """All but one sample of each response, then those."""
    last = {sample.response_ids: sample.query for sample in samples}
    return sorted(samples, key=lambda sample: last[sample.response_ids] == sample.query)
