"""What memories say beside their tensors, field by field; docs/memory-format.md explains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from ..text.chat_format import parse_query
from ..utils.values import check, is_date, require
from .lineage import Ancestor, Made, check_lineage

# A measured figure; None where it was no finite number.
Figure = float | None


class Point(TypedDict):
    """A measurement while compiling."""

    step: float
    loss: Figure
    held_out_kl: Figure
    seconds: float


class Cost(TypedDict):
    """What quantising costs a stream of questions."""

    answers: int
    tokens: int
    kl: Figure
    changed: Figure


class _Source(TypedDict):
    source_dtype: str


class Quantization(_Source, total=False):
    """What quantising cost, by stream of questions."""

    self_study: Cost
    general: Cost


class Readers(TypedDict):
    """A figure of each reader."""

    full_text: float
    memory: float
    no_text: float


class Missed(TypedDict):
    """A question that the memory answers worse."""

    question: str
    full_text: str
    memory: str


class Questions(TypedDict):
    """Scores on questions about the text."""

    source: Literal["given", "self_asked"]
    count: int
    referenced: int
    score: Readers
    kept: Figure
    missed: list[Missed]


class Reconstruction(TypedDict):
    """The text repeated."""

    tokens: int
    accuracy: Readers


class FromFullText(TypedDict):
    """KL from the full text."""

    memory: Figure
    no_text: Figure


class HeldOut(TypedDict):
    """KL over held-out answers."""

    answers: int
    tokens: int
    kl: FromFullText


class Drift(TypedDict):
    """How far a reader's answers are from another's."""

    kl: Figure
    changed: Figure


class DriftFromFullText(TypedDict):
    """Of the other readers from the full text."""

    memory: Drift
    no_text: Drift


class DriftFromNoText(TypedDict):
    """Of the other readers from nothing."""

    full_text: Drift
    memory: Drift


class General(TypedDict):
    """Answers to queries that have nothing to do with the text."""

    answers: int
    from_full_text: DriftFromFullText
    from_no_text: DriftFromNoText


class Rehearsed(TypedDict):
    """What an update keeps of the old memory, which stands for the full text here."""

    held_out: HeldOut | None
    questions: Questions | None


class _Certificate(TypedDict):
    questions: Questions | None
    reconstruction: Reconstruction
    held_out: HeldOut | None
    general: General
    dtype: str
    seconds: float


class Certificate(_Certificate, total=False):
    """What a memory keeps and changes."""

    rehearsed: Rehearsed


class Tried(TypedDict):
    """A ratio that ``ratio="auto"`` tried."""

    ratio: float
    buffer_tokens: int
    kept: float


class Asking(TypedDict):
    """What came of asking itself; each count is a part of the one before."""

    asker: str
    sampled: int
    ended: int
    distinct: int
    about: int
    kept: int


class RatioSearch(TypedDict):
    """What ``ratio="auto"`` was to meet, and what it tried."""

    target: float
    met: bool
    tried: list[Tried]


class Budget(TypedDict):
    """The seconds that a compilation was given, whether the memory is its last one, and all that was asked for."""

    seconds: float
    finished: bool
    asked: dict[str, Any]


class Update(TypedDict):
    """The text that a memory took in last, and whether buffer tokens were added for it."""

    growing: bool
    text_tokens: int
    text_sha256: str


class Changed(TypedDict):
    """A question that a server answers otherwise than ``lcc.ask``."""

    question: str
    lcc: str
    served: str


class Served(TypedDict):
    """How a server's answers compare with those of ``lcc.ask``: how many there were, and how many are the same."""

    engine: str
    dtype: str
    date: str
    answers: int
    same: int
    changed: list[Changed]


class Section(TypedDict):
    """A section of a long text: its tokens, those included with which the one before ends, and its buffer tokens."""

    tokens: int
    buffer_tokens: int


class Attack(TypedDict):
    """How much of the text an attack makes each reader write."""

    prompts: int
    attempts: int
    recited: Readers
    best: Readers
    longest: Readers


class Written(TypedDict):
    """Whether each reader wrote something word for word."""

    full_text: bool
    memory: bool
    no_text: bool


class Canary(TypedDict):
    """How likely each reader finds a string of the text, among others of its shape."""

    alternatives: int
    exposure: Readers
    written: Written


class Passages(TypedDict):
    """What each reader tells of marked or redacted passages."""

    count: int
    tokens: int
    recited: Readers
    questions: int
    same: Readers | None


class Leaks(TypedDict):
    """What of a text can be got out of its memory."""

    date: str
    recited: float
    tokens: int
    run: int
    redacted: int
    attacks: dict[str, Attack]
    canaries: list[Canary]
    passages: Passages | None
    seconds: float


class AdapterRecord(TypedDict):
    """What a memory of the kind ``adapter`` says of its LoRA; see ``lcc.modeling.adapter.Adapter``."""

    rank: int
    alpha: float
    targets: list[str]
    cache_sharing: bool


METADATA: dict[str, Any] = {
    "prefix_ids": tuple[int, ...],
    "ratio": float,
    "source_tokens": int,
    "source_sha256": str,
    "rope": dict[str, Any],
    "fingerprint": dict[str, str],
    "settings": dict[str, Any],
    "compiler": dict[str, str],
    "curve": list[Point],
    "questions": tuple[Any, ...],
    "quantization": Quantization | None,
    "certificate": Certificate | None,
    "ratio_search": RatioSearch | None,
    "budget": Budget | None,
    "max_bytes": int | None,
    "asking": Asking | None,
    "date": str | None,
    "made": Made,
    "lineage": list[Ancestor],
    "update": Update | None,
    "distractors": list[str],
    "served": list[Served],
    "sections": list[Section],
    "redacted": int,
    "leaks": Leaks | None,
}
# Token ids end below this: more than any vocabulary, and what an index of torch holds.
TOKEN_IDS = 2**31


def check_metadata(given: Mapping[str, Any]) -> None:
    """Refuse metadata that is not what ``METADATA`` says, or out of range.

    Raises:
        InputError: naming the field, or the part of it.
    """
    for name, kind in METADATA.items():
        check(name, given[name], kind)
    require(1 <= given["ratio"] < float("inf"), "ratio", given["ratio"], "at least 1, and finite")
    require(given["source_tokens"] >= 0, "source_tokens", given["source_tokens"], "zero or more")
    for token in given["prefix_ids"]:
        require(0 <= token < TOKEN_IDS, "prefix_ids", given["prefix_ids"], "token ids")
    require("name" in given["compiler"], "compiler", given["compiler"], "an object with a name")
    require(given["redacted"] >= 0, "redacted", given["redacted"], "zero or more")
    for question in given["questions"]:
        parse_query(question)
    check_lineage(given["made"], given["lineage"])
    require(given["date"] is None or is_date(given["date"]), "date", given["date"], "a date as ISO 8601 writes it")
