"""The figures that are measured of a memory: its certificate and its leak test; docs/memory-format.md explains them."""

from __future__ import annotations

from typing import Literal, TypedDict

# A measured figure; None where it was no finite number.
Figure = float | None


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


class InTheFile(TypedDict):
    """What the file says of the text in words."""

    strings: int
    recited: float
    longest: int
    canaries: list[bool]


class _Leaks(TypedDict):
    date: str
    recited: float
    tokens: int
    run: int
    redacted: int
    attacks: dict[str, Attack]
    canaries: list[Canary]
    passages: Passages | None
    seconds: float


class Leaks(_Leaks, total=False):
    """What of a text can be got out of its memory."""

    file: InTheFile
