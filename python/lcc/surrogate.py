"""The surrogate data: what the teacher is asked about the text, and what it answers (LCC section 3.4).

Three streams. *Reconstruction*: one sample, "please repeat the context". *General*: context-agnostic queries.
*Self-study*: questions that the frozen model itself asks about the text. All responses but the reconstruction's are
the full-context teacher's own, generated once, greedily.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .context import Context
from .encode import read_text
from .errors import InputError
from .generate import generate_responses
from .kv import KV, decoder
from .settings import CompileSettings

REPEAT_REQUEST = "Please repeat the context."
ASK_REQUEST = "Ask a question about the text."
STREAMS = ("reconstruction", "general", "self_study")
# Teacher passes hold at most this many cached tokens, over all rows of a batch.
CACHED_TOKENS = 1 << 15
# Questions sampled at once about a piece of text, and how often at most.
ASKING_ROWS, ASKING_ROUNDS = 32, 4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """One query with its response, and what the teacher thinks while it writes it.

    Attributes:
        query_ids: from the end of the text to the start of the response.
        response_ids: the response and its end token; each is supervised.
        teacher_hidden: (response tokens, H), the teacher's last hidden state where each is predicted; empty until it
            is known.
    """

    stream: str
    query: str
    query_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    teacher_hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0), compare=False)

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
    def self_questions(self) -> frozenset[str]:
        """The questions that the model asked itself, held-out ones included."""
        return frozenset(s.query for s in self.train + self.held_out if s.stream == "self_study")


def load_queries(source: str | Path | Iterable[str] | None = None) -> list[str]:
    """Context-agnostic queries: the package's own, a JSONL file, a datasets name, or any strings.

    Rows of a JSONL file or a dataset give their query as ``query``, ``instruction``, ``prompt`` or ``text``.

    Raises:
        InputError: the source cannot be read or holds no query.
    """
    if source is None:
        rows = _read_jsonl((resources.files("lcc") / "data" / "queries.jsonl").read_text("utf-8"), "queries.jsonl")
    elif isinstance(source, (str, Path)):
        rows = _load_rows(str(source))
    else:
        rows = [{"query": query} for query in source]
    queries = [query for row in rows if (query := _query_of(row))]
    if not queries:
        raise InputError(f"no queries in {source}: give rows with query, instruction, prompt or text")
    return queries


def build_surrogate(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    settings: CompileSettings,
    queries: Sequence[str],
    progress: Progress,
) -> Surrogate:
    """Draw the queries, let the model ask its own, and let the teacher respond.

    Args:
        model: frozen, no adapter active.
        text_kv: K and V of [P | C], rotated.
        progress: called with (what, done, total).
    """
    rng = random.Random(settings.seed)
    asked = {"general": _draw(queries, settings.general_queries, rng) if settings.general_weight else []}
    if settings.self_study_questions and settings.self_study_weight:
        asked["self_study"] = ask_questions(model, context, text_kv, settings, progress)
    unanswered = [
        Sample(stream, query, tuple(context.chat.query_ids(query)), ())
        for stream, texts in asked.items()
        for query in texts
    ]
    samples = _respond(model, context, text_kv, unanswered, settings, progress)
    repeat = Sample(
        "reconstruction",
        REPEAT_REQUEST,
        tuple(context.chat.query_ids(REPEAT_REQUEST)),
        (*context.context_ids, context.chat.end),
    )
    samples = _teach(model, text_kv, [*samples, repeat])
    reconstruction = samples.pop()
    rng.shuffle(samples)
    held_out = _hold_out(samples, settings.held_out)
    return Surrogate(reconstruction, tuple(s for s in samples if s not in held_out), tuple(held_out))


def ask_questions(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings, progress: Progress
) -> list[str]:
    """Distinct questions that the model asks about the text, the same number about each piece of it.

    Asked about the whole text at once, a model keeps coming back to the same few facts; what is never asked in any
    wording is what a memory forgets.
    """
    prefix = text_kv.head(len(context.prefix_ids))
    pieces = text_pieces(context.context_ids, settings.self_study_piece)
    total = settings.self_study_questions
    found: dict[str, None] = {}
    for number, piece in enumerate(pieces, 1):
        wanted = len(found) + (total - len(found)) // (len(pieces) - number + 1)
        seen = read_text(model, piece, prefix)
        for _ in range(ASKING_ROUNDS):
            if len(found) >= wanted:
                break
            for question in _sample_questions(model, context, seen, settings):
                if len(found) < wanted:
                    found.setdefault(question)
        progress("asking itself", number, len(pieces))
    return list(found)


def text_pieces(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """``ids`` in pieces of ``length`` that overlap by half; everything at once for a length of 0."""
    if not length or len(ids) <= length:
        return [ids]
    starts = range(0, len(ids) - length // 2, max(1, length // 2))
    return [ids[start : start + length] for start in starts]


def _sample_questions(model: PreTrainedModel, context: Context, seen: KV, settings: CompileSettings) -> list[str]:
    """One batch of questions about what is in ``seen``, empty ones left out."""
    sampled = generate_responses(
        model,
        seen,
        [context.chat.query_ids(ASK_REQUEST)] * ASKING_ROWS,
        settings.max_response_tokens,
        end=context.chat.end,
        temperature=settings.self_study_temperature,
    )
    questions = (context.chat.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in sampled)
    return [question for question in questions if question]


def _draw(queries: Sequence[str], count: int, rng: random.Random) -> list[str]:
    distinct = list(dict.fromkeys(queries))
    return rng.sample(distinct, min(count, len(distinct)))


def _rows(cached: int) -> int:
    """Rows of a teacher batch over ``cached`` shared tokens."""
    return max(1, min(64, CACHED_TOKENS // cached))


def _respond(
    model: PreTrainedModel,
    context: Context,
    text_kv: KV,
    samples: list[Sample],
    settings: CompileSettings,
    progress: Progress,
) -> list[Sample]:
    """Give each sample the teacher's greedy response, end token included."""
    answered = []
    rows = _rows(len(text_kv))
    for start in range(0, len(samples), rows):
        chunk = samples[start : start + rows]
        responses = generate_responses(
            model,
            text_kv,
            [sample.query_ids for sample in chunk],
            settings.max_response_tokens,
            end=context.chat.end,
        )
        for sample, ids in zip(chunk, responses, strict=True):
            answered.append(replace(sample, response_ids=(*ids, context.chat.end)))
        progress("teacher responses", len(answered), len(samples))
    return answered


def _teach(model: PreTrainedModel, text_kv: KV, samples: list[Sample]) -> list[Sample]:
    """Give each sample the teacher's hidden states where its response is predicted."""
    taught: list[Sample] = []
    rows = _rows(len(text_kv))
    for start in range(0, len(samples), rows):
        chunk = samples[start : start + rows]
        with torch.no_grad():
            hidden = response_hidden(model, text_kv, chunk)
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
    hidden = decoder(model)(
        input_ids=torch.tensor(ids, device=model.device),
        position_ids=positions[None],
        past_key_values=visible.cache(),
    ).last_hidden_state
    chosen = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, sample in enumerate(samples):
        chosen[row, len(sample.query_ids) - 1 : len(sample.input_ids)] = True
    return hidden[chosen.to(hidden.device)]


def _hold_out(samples: Sequence[Sample], share: float) -> list[Sample]:
    """The first ``share`` of each stream's samples."""
    kept: list[Sample] = []
    for stream in STREAMS:
        mine = [sample for sample in samples if sample.stream == stream]
        kept += mine[: int(len(mine) * share)]
    return kept


def _load_rows(name: str) -> list[dict]:
    if Path(name).is_file():
        return _read_jsonl(Path(name).read_text("utf-8"), name)
    if name.endswith((".jsonl", ".json")):
        raise InputError(f"there is no file {name}")
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(f"{name} is no file; to read it as a dataset, pip install datasets") from None
    return list(load_dataset(name, split="train"))


def _read_jsonl(content: str, name: str) -> list[dict]:
    rows = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{name}, line {number} is not JSON: {error}") from None
    return rows


def _query_of(row: dict) -> str | None:
    for name in ("query", "instruction", "prompt", "text"):
        if isinstance(row.get(name), str) and row[name].strip():
            return row[name]
    return None
