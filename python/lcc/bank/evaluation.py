"""Both sides of a bank: what it answers of its documents, and what it leaves alone beside them (Cartridges++)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ..errors import InputError
from ..utils.progress import Report
from ..utils.values import is_text, quoted
from .gating import ALWAYS
from .opening import OpenBank
from .reading import Before
from .routing import ScoreRouter
from .session import QUESTIONS, Asking, BankAnswer

DEPTHS = (1, 3, 5)
# Says how right an answer is, from 0 to 1.
Score = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class BankQuestion:
    """A question that is asked of a bank.

    Attributes:
        answers: any of which is right; empty for a question of no document.
        key: the document that answers it; None: none does.
    """

    question: str
    answers: tuple[str, ...] = ()
    key: str | None = None


def parse_questions(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[BankQuestion]:
    """Rows of ``question``, ``answer`` (a text or a list of them) and ``document``; without a document none answers it.

    Raises:
        InputError: a row without a question or an answer, or one about a document that the bank does not hold.
    """
    known, questions = set(keys), []
    for number, row in enumerate(rows, 1):
        question, answer, key = row.get("question"), row.get("answer"), row.get("document")
        answers = () if answer is None else tuple(answer) if isinstance(answer, list) else (answer,)
        texts = (question, *answers)
        if not isinstance(question, str) or not all(is_text(text) and text.strip() for text in texts):
            raise InputError(
                f"row {number} has no question, or an answer that is no text, or empty: give both as texts, such as "
                '"7" for 7'
            )
        if key is not None and not (isinstance(key, str) and key in known):
            raise InputError(f"row {number} is about the document {quoted(key)!r}, which the bank does not hold")
        if key is not None and not answers:
            raise InputError(f"row {number} is about {key} and has no answer: give one")
        questions.append(BankQuestion(question, answers, key))
    if not any(one.key for one in questions):
        raise InputError("no question is about a document of the bank: give rows with document, question and answer")
    return questions


class BankEvaluation:
    """Asks a bank in every way.

    The ways are: the right memory (``oracle``), the retriever's first (``retrieved``), the one that is routed to, with
    the gate open (``routed``) and as it is (``gated``), and the raw text of the retriever's first (``text``).

    Args:
        bank: its router, gate and number of candidates.
        score: of an answer.
        report: told of the progress.
    """

    def __init__(self, bank: OpenBank, score: Score, max_new_tokens: int = 64, report: Report = lambda *_: None):
        gated = replace(bank.asking, text_gate=None)
        routed = replace(gated, chooser=replace(gated.chooser, gate=ALWAYS, together=1))
        nearest = replace(routed, chooser=replace(routed.chooser, router=ScoreRouter()), candidates=1)
        self.ways = {"retrieved": nearest, "routed": routed, "gated": gated}
        self.session, self.score = bank.session, score
        self.max_new_tokens, self.report = max_new_tokens, report

    def run(self, questions: Sequence[BankQuestion], unrelated: Sequence[str]) -> dict[str, Any]:
        """Ask all questions in all ways.

        Args:
            unrelated: questions that no document is about.

        Returns:
            JSON-ready. ``found``: share whose document is among the first 1, 3 and 5. ``right_memory``: share that came
            from the right one. ``answers``: mean scores. ``of_oracle``: the same as shares of the oracle's.
            ``unrelated`` and ``unanswerable``, which are questions of no document: see ``_beside``.
        """
        about = [one for one in questions if one.key is not None]
        asked = {name: self._ask([one.question for one in about], way, name) for name, way in self.ways.items()}
        texts = {name: [answer.text for answer in answers] for name, answers in asked.items()}
        texts["oracle"] = self._behind(about, [Before((str(one.key),)) for one in about])
        if raw := self._raw_texts(asked["retrieved"]):
            texts["text"] = self._behind(about, raw)
        answers = {
            name: _mean(self.score(text, one.answers) for text, one in zip(some, about, strict=True))
            for name, some in texts.items()
        }
        hits = [[hit.key for hit in self.session.find(one.question, max(DEPTHS))] for one in about]
        return {
            "documents": len({one.key for one in about}),
            "questions": len(about),
            "found": {
                depth: _mean(one.key in keys[:depth] for one, keys in zip(about, hits, strict=True)) for depth in DEPTHS
            },
            "right_memory": {
                name: _mean(answer.keys == (one.key,) for answer, one in zip(some, about, strict=True))
                for name, some in asked.items()
            },
            "answers": answers,
            "of_oracle": {
                name: mean / answers["oracle"] if answers["oracle"] else None for name, mean in answers.items()
            },
            "unrelated": self._beside(unrelated),
            "unanswerable": self._beside([one.question for one in questions if one.key is None]),
        }

    def _beside(self, questions: Sequence[str]) -> dict[str, Any]:
        """How many there are and, without the gate and with it, the shares that no memory answers (``refused``), and
        that are answered as by the plain model (``unchanged``)."""
        plain = self._ask(questions, replace(self.ways["retrieved"], candidates=0), "plain model")
        measured: dict[str, Any] = {"count": len(questions)}
        for name in ("routed", "gated") if questions else ():
            answers = self._ask(questions, self.ways[name], name)
            measured[name] = {
                "refused": _mean(answer.source == "model" for answer in answers),
                "unchanged": _mean(
                    answer.text == as_plain.text for answer, as_plain in zip(answers, plain, strict=True)
                ),
            }
        return measured

    def _ask(self, questions: Sequence[str], way: Asking, name: str) -> list[BankAnswer]:
        answers: list[BankAnswer] = []
        for answer in self.session.ask(questions, way, self.max_new_tokens):
            answers.append(answer)
            self.report(f"asking {name}", len(answers), len(questions))
        return answers

    def _raw_texts(self, answers: Sequence[BankAnswer]) -> list[Before] | None:
        """The texts of the memories that were found first; None if one is not kept, or goes beyond the window."""
        keys = [answer.considered[0].key if answer.considered else None for answer in answers]
        texts = {key: None if key is None else self.session.documents.text(key) for key in set(keys)}
        places = [Before((str(key),), "text") for key in keys]
        if None in texts.values() or not all(map(self._fits, (answer.question for answer in answers), places)):
            return None
        return places

    def _fits(self, question: str, text: Before) -> bool:
        return self.session.fits(text, question, self.max_new_tokens)

    def _behind(self, questions: Sequence[BankQuestion], places: Sequence[Before]) -> list[str]:
        """Answers behind what is given for each question."""
        texts: list[str] = []
        for start in range(0, len(questions), QUESTIONS):
            some = [one.question for one in questions[start : start + QUESTIONS]]
            reading = self.session.reader.read(some, [[place] for place in places[start : start + QUESTIONS]])
            texts += reading.go_on([(number, 0) for number in range(len(some))], self.max_new_tokens)
        return texts


def _mean(values: Iterable[float]) -> float:
    return fmean(map(float, values))
