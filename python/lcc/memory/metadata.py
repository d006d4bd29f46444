"""What memories say beside their tensors, field by field; docs/memory-format.md explains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ..text.chat_format import parse_query
from ..utils.values import check, is_date, require
from .figures import Certificate, Figure, Leaks
from .lineage import Ancestor, Made, check_lineage


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
