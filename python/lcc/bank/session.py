"""A bank before a model: questions in, answers out, each with where it came from and why."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from ..errors import InputError, MemoryFileError
from ..inference.asking import checked_questions
from ..inference.attached import attached
from ..inference.pool import AttachedPool
from ..inference.reader import prefill_chat
from ..memory.memory import Memory
from ..memory.payload import AdapterPayload
from ..modeling.adapter import Adapter
from ..modeling.kv import KV
from ..text.chat_format import ChatFormat
from ..utils.values import check_count
from .choosing import Chooser, Considered, Decision
from .gating import Gate
from .index import Hit
from .neighbors import NOBODY, Neighborhood
from .reading import BankReader, Before, Reading
from .retrieval import Retriever

Source = Literal["memory", "text", "model"]
# Questions that are read at once.
QUESTIONS = 16


class Documents(Protocol):
    """What a session wants of a bank."""

    def memory(self, key: str) -> Memory:
        """The memory of ``key``; raises MemoryFileError if it cannot be read."""
        ...

    def text(self, key: str) -> str | None:
        """Its text, if that is kept."""
        ...

    def state(self, key: str) -> Hashable:
        """Another one whenever its memory or its text has changed."""
        ...


@dataclass(frozen=True)
class BankAnswer:
    """An answer of a bank.

    Attributes:
        source: ``memory``, ``text``: the raw text of a document in the model's context, or ``model``: the plain model.
        keys: the documents that it came from; empty for ``model``.
        reason: why, in words.
        considered: the candidates, the nearest first.
    """

    question: str
    text: str
    source: Source
    keys: tuple[str, ...]
    reason: str
    considered: tuple[Considered, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Asking:
    """How a bank is asked.

    Attributes:
        chooser: router and gate.
        candidates: memories that are looked at for each question.
        text_gate: a second gate, for candidates that the first one refuses: the kept text of what it accepts answers.
            None: no text does.
        neighborhood: looks questions up among the self-asked ones; it is called if the chooser ``looks``.
    """

    chooser: Chooser
    neighborhood: Callable[[Sequence[str]], list[Neighborhood]]
    candidates: int = 5
    text_gate: Gate | None = None


class BankSession:
    """A model, and the documents of a bank. Threads may share it: their questions take turns.

    Attributes:
        skipped: why memories that were found could not be read, by key.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        chat: ChatFormat,
        documents: Documents,
        retriever: Retriever,
        pool: AttachedPool[KV | Adapter],
    ):
        self.model, self.chat, self.documents, self.retriever = model, chat, documents, retriever
        self._pool = pool
        self.reader = BankReader(model, chat, self._put)
        self.skipped: dict[str, str] = {}
        self._turn = threading.Lock()

    def ask(self, questions: Sequence[str], asking: Asking, max_new_tokens: int = 64) -> Iterator[BankAnswer]:
        """Answer each question from the memories that are chosen for it, from a text, or from the plain model.

        Raises:
            InputError: an empty question, a single string where a list is meant, or a question and its answer that go
                beyond the model's window.
        """
        check_count("max_new_tokens", max_new_tokens)
        questions = checked_questions(questions)
        for start in range(0, len(questions), QUESTIONS):
            with self._turn:
                answers = self._ask(questions[start : start + QUESTIONS], asking, max_new_tokens)
            yield from answers

    def find(self, question: str, count: int, without: str | None = None) -> list[Hit]:
        """The candidates of a question whose memories can be read."""
        return [hit for hit in self.retriever.search(question, count, without) if self._readable(hit.key)]

    def read(self, questions: Sequence[str], hits: Sequence[Sequence[Hit]]) -> Reading:
        """Read each question behind the plain model's prefix and behind each of its candidates, in one pass."""
        return self.reader.read(questions, [[Before((hit.key,)) for hit in some] for some in hits])

    def _ask(self, questions: Sequence[str], asking: Asking, max_new_tokens: int) -> list[BankAnswer]:
        hits = [self.find(question, asking.candidates) for question in questions]
        reading = self.read(questions, hits)
        near = asking.neighborhood(questions) if asking.chooser.looks else [NOBODY] * len(questions)
        decisions = [
            asking.chooser.choose(reading.candidates(number, some, around), around)
            for number, (some, around) in enumerate(zip(hits, near, strict=True))
        ]
        answers = self._answered_elsewhere(questions, decisions, asking.text_gate, max_new_tokens)
        here = [(n, next(iter(d.chosen), None)) for n, d in enumerate(decisions) if n not in answers]
        for (number, choice), text in zip(here, reading.go_on(here, max_new_tokens), strict=True):
            before = None if choice is None else Before((hits[number][choice].key,))
            answers[number] = _answer(questions[number], text, before, decisions[number])
        return [answers[number] for number in range(len(questions))]

    def _answered_elsewhere(
        self, questions: Sequence[str], decisions: Sequence[Decision], text_gate: Gate | None, max_new_tokens: int
    ) -> dict[int, BankAnswer]:
        """Answers behind what no candidate is: several memories side by side, or a text where no memory answers."""
        places: dict[int, Before] = {}
        for number, (question, decision) in enumerate(zip(questions, decisions, strict=True)):
            before = self._elsewhere(decision, text_gate)
            if before is not None and self.fits(before, question, max_new_tokens):
                places[number] = before
        if not places:
            return {}
        reading = self.reader.read([questions[number] for number in places], [[before] for before in places.values()])
        texts = reading.go_on([(index, 0) for index in range(len(places))], max_new_tokens)
        return {
            number: _answer(questions[number], text, before, decisions[number])
            for (number, before), text in zip(places.items(), texts, strict=True)
        }

    def _elsewhere(self, decision: Decision, text_gate: Gate | None) -> Before | None:
        keys = tuple(decision.considered[choice].key for choice in decision.chosen)
        if len(keys) > 1:
            return Before(keys)
        if keys or decision.best is None or text_gate is None:
            return None
        best = decision.considered[decision.best]
        accepted = text_gate.accepts(getattr(best, text_gate.signal))
        return Before((best.key,), "text") if accepted and self.documents.text(best.key) is not None else None

    def _readable(self, key: str) -> bool:
        try:
            self._put(Before((key,)))
        except (MemoryFileError, InputError) as error:
            self.skipped[key] = str(error)
            return False
        return True

    def fits(self, before: Before, question: str, max_new_tokens: int) -> bool:
        """Whether they can be read, and the model's window holds them with the question and its answer."""
        try:
            self.reader.check(question, before, max_new_tokens)
        except (MemoryFileError, InputError):
            return False
        return True

    def _put(self, before: Before) -> KV | Adapter:
        states = tuple(map(self.documents.state, before.keys))
        return self._pool.get((before, states), lambda: self._made(before))

    def _made(self, before: Before) -> KV | Adapter:
        """What a question is read behind.

        Raises:
            MemoryFileError: a memory cannot be read.
            InputError: the model's window does not hold it, or an adapter cannot be read beside others.
        """
        if before.source == "text":
            return prefill_chat(self.model, self.chat, self.documents.text(before.keys[0]) or "")
        memories = [self.documents.memory(key) for key in before.keys]
        payload = memories[0].payload
        if len(memories) == 1 and isinstance(payload, AdapterPayload):
            if not payload.adapter.cache_sharing:
                raise InputError("it was trained without cache sharing: compile it again with cache_sharing=True")
            return payload.to(self.model.device, self.model.dtype).adapter
        with attached(self.model, memories, verify=False) as there:
            return there.visible


def _answer(question: str, text: str, before: Before | None, decision: Decision) -> BankAnswer:
    source: Source = "model" if before is None else before.source
    return BankAnswer(question, text, source, before.keys if before else (), decision.reason, decision.considered)
