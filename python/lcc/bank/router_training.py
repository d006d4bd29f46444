"""Trains the router and fits the gates on the questions that the bank's memories asked themselves."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

from ..errors import InputError
from ..utils.progress import Report
from ..utils.random_state import sample_up_to
from .choosing import Considered, scored
from .gating import LOW, Fit, Gate, Signal, fit
from .index import Hit
from .neighbors import NOWHERE, Neighborhood, conformal_gate
from .routing import FORMS, Asked, FirstTokenRouter, NeighborRouter, Router, ScoreRouter, accuracy
from .session import QUESTIONS, BankSession
from .signals import Candidate

# Unrelated questions that are read, at most.
MOST_UNRELATED = 400
HELD_OUT = 0.25
# Questions whose neighbours are looked up at once.
LOOKED_UP = 128
# Banks of fewer documents hold out questions, not documents.
FEW = 8
STAGE = "reading questions"
# Neighborhoods of questions, and whether those that read the same are left out.
Near = Callable[[Sequence[str], bool], list[Neighborhood]]
# Those that a gate is fitted on.
SIGNALS: tuple[Signal, ...] = ("entropy", "divergence", "likeness", "score")


@dataclass(frozen=True)
class Examples:
    """Questions that were read behind their candidates.

    Attributes:
        answered: self-asked ones, whose memory is a candidate if the retriever found it.
        absent: the same ones, their memory hidden: no candidate answers them.
        unrelated: general queries, which no memory is about.
    """

    answered: tuple[Asked, ...]
    absent: tuple[Asked, ...]
    unrelated: tuple[Asked, ...]

    @property
    def found(self) -> tuple[Asked, ...]:
        """The answered ones whose memory is a candidate."""
        return tuple(one for one in self.answered if one.gold is not None)


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        router: scores candidates by their first tokens.
        gates: a fit for each signal of the candidate that the router prefers, by the signal's name.
        conformal: a gate on the likeness that refuses 5 % of the self-asked questions, whatever it lets pass.
        accuracy: of each router, and of each form of the trained one, on held-out questions whose memory the retriever
            found. The form that is best there was taken.
        found: share of the held-out questions whose memory the retriever found.
        refused: by each gate, shares of held-out questions: of the ``unrelated`` ones, which the gates are fitted on,
            and of the ``absent`` ones, which they are not.
        counts: questions that were trained on and held out, of each kind.
        signals: of the held-out questions that have candidates, by the gate and by the kind of question (``answered``
            too).
    """

    router: FirstTokenRouter
    gates: dict[str, Fit]
    conformal: Gate
    accuracy: dict[str, float | None]
    found: float
    refused: dict[str, dict[str, float]]
    counts: dict[str, int]
    signals: dict[str, dict[str, list[float]]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: everything but the router's weights, with its form."""
        named = {name: value for name, value in vars(self).items() if name not in ("router", "gates", "conformal")}
        gates = {name: fitted.to_dict() for name, fitted in self.gates.items()}
        return named | {"form": self.router.form, "gates": gates, "conformal": asdict(self.conformal)}

    @property
    def best(self) -> Fit:
        """The gate that tells the held-out questions apart best."""
        return best_of(self.gates)


def best_of(gates: Mapping[str, Fit]) -> Fit:
    """The gate that tells the held-out questions apart best."""
    return max(gates.values(), key=lambda fitted: fitted.accuracy)


def distinct_questions(asked: Mapping[str, Sequence[str]], seed: int) -> list[tuple[str, str]]:
    """Questions that one memory alone asked itself, each with its key, in random order.

    Args:
        asked: each memory's self-asked questions.
    """
    counts = Counter(question for questions in asked.values() for question in set(questions))
    alone = [
        (key, one) for key, questions in sorted(asked.items()) for one in sorted(set(questions)) if counts[one] == 1
    ]
    random.Random(seed).shuffle(alone)
    return alone


def read_examples(
    session: BankSession,
    asked: Sequence[tuple[str, str]],
    unrelated: Sequence[str],
    count: int,
    most: int,
    near: Near,
    report: Report,
) -> Examples:
    """Find and read the candidates of each question; a self-asked one does not find itself.

    A self-asked question is left out if another memory asked itself one that is more like it than all others of its own
    memory: it does not say which of the two is right.

    Args:
        asked: keys and questions.
        count: candidates of each question.
        most: self-asked questions that are read, at most.
        near: the neighborhoods of questions, without those that read the same if it is told so.
    """
    answered: list[Asked] = []
    absent, others = [], []
    clear_ones = list(islice(_clear_ones(asked, near), most))
    total = len(clear_ones) + len(unrelated)
    for start in range(0, len(clear_ones), QUESTIONS):
        clear = clear_ones[start : start + QUESTIONS]
        hits = [session.find(question, count + 1, question) for _, question, _ in clear]
        read = _read(session, [question for _, question, _ in clear], hits, [there for *_, there in clear])
        for (key, _, there), found in zip(clear, read, strict=True):
            answered.append(_asked(found[:count], key, there))
            absent.append(_asked([one for one in found if one.key != key][:count], None, there))
        report(STAGE, len(answered), total)
    for start in range(0, len(unrelated), QUESTIONS):
        queries = unrelated[start : start + QUESTIONS]
        hits, around = [session.find(question, count) for question in queries], near(queries, False)
        read = _read(session, queries, hits, around)
        others += [_asked(found, None, there) for found, there in zip(read, around, strict=True)]
        report(STAGE, len(answered) + len(others), total)
    return Examples(tuple(answered), tuple(absent), tuple(others))


def train_on(
    session: BankSession,
    asked: Mapping[str, Sequence[str]],
    unrelated: Sequence[str],
    count: int,
    near: Near,
    most: int,
    seed: int = 0,
    report: Report = lambda *_: None,
) -> Trained:
    """Draw the questions, hold a part out, and train on the rest.

    Args:
        asked: each memory's self-asked questions.
        unrelated: questions that no memory is about.
        count: candidates of each question.
        near: see ``read_examples``.
        most: self-asked questions that are read, at most.

    Raises:
        InputError: there are too few self-asked questions.
    """
    parts = split(distinct_questions(asked, seed), seed)
    rng = random.Random(seed)
    others = sample_up_to(rng, list(dict.fromkeys(unrelated)), MOST_UNRELATED)
    held = int(len(others) * HELD_OUT)
    sides = zip(parts, (others[held:], others[:held]), strict=True)
    held_out_most = int(most * HELD_OUT)
    examples, held_out = (
        read_examples(session, *some, count, limit, near, report)
        for some, limit in zip(sides, (most - held_out_most, held_out_most), strict=True)
    )
    return train(examples, held_out, seed)


def train(examples: Examples, held_out: Examples, seed: int = 0) -> Trained:
    """Train the router on ``examples``, fit the gates, and measure all on ``held_out``.

    Raises:
        InputError: there are too few self-asked questions.
    """
    asked, held = ([*some.answered, *some.unrelated] for some in (examples, held_out))
    forms = {form: FirstTokenRouter.train(form, asked, held, seed) for form in FORMS}
    reached = {form: accuracy(each, held_out.answered) for form, each in forms.items()}
    router = forms[max(reached, key=lambda form: reached[form] or 0.0)]
    others: list[Router] = [ScoreRouter(), NeighborRouter()]
    reached |= {each.name: accuracy(each, held_out.answered) for each in others}
    trained_on, signals = (_signals(router, some) for some in (examples, held_out))
    gates: dict[str, Fit] = {
        signal: fit(
            signal, *(side[signal][kind] for side in (trained_on, signals) for kind in ("answered", "unrelated"))
        )
        for signal in SIGNALS
    }
    return Trained(
        router=router,
        gates=gates,
        conformal=conformal_gate(
            [one.candidates[one.gold].likeness for one in examples.answered if one.gold is not None]
        ),
        accuracy=reached,
        found=len(held_out.found) / len(held_out.answered),
        refused={
            signal: {kind: _share_refused(gates[signal].gate, some[kind]) for kind in ("unrelated", "absent")}
            for signal, some in signals.items()
        },
        counts={"trained": len(examples.answered), "held_out": len(held_out.answered)}
        | {"unrelated": len(examples.unrelated), "held_out_unrelated": len(held_out.unrelated)},
        signals={signal: {kind: _finite(values) for kind, values in some.items()} for signal, some in signals.items()},
    )


def split(asked: Sequence[tuple[str, str]], seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Questions to train on and to hold out: those of a quarter of the documents; of few documents, a quarter of all.

    Raises:
        InputError: there are fewer than four.
    """
    if len(asked) < 4:
        raise InputError(
            "the memories carry too few self-asked questions to train a router on: compile with lcc or direct_kv, "
            "which ask themselves, and more documents"
        )
    keys = sorted({key for key, _ in asked})
    if len(keys) < FEW:
        count = int(len(asked) * HELD_OUT)
        return list(asked[count:]), list(asked[:count])
    held = set(random.Random(seed).sample(keys, int(len(keys) * HELD_OUT)))
    return [one for one in asked if one[0] not in held], [one for one in asked if one[0] in held]


def _clear_ones(asked: Sequence[tuple[str, str]], near: Near) -> Iterator[tuple[str, str, Neighborhood]]:
    """Questions to which no memory's are more like than those of their own, with their neighborhoods."""
    for start in range(0, len(asked), LOOKED_UP):
        part = asked[start : start + LOOKED_UP]
        for (key, question), around in zip(part, near([question for _, question in part], True), strict=True):
            if around.of(key) >= max(around.likeness.values(), default=NOWHERE):
                yield key, question, around


def _read(
    session: BankSession, questions: Sequence[str], hits: Sequence[Sequence[Hit]], around: Sequence[Neighborhood]
) -> list[list[Candidate]]:
    if not questions:
        return []
    reading = session.read(questions, hits)
    return [reading.candidates(number, some, around[number]) for number, some in enumerate(hits)]


def _asked(read: Sequence[Candidate], key: str | None, around: Neighborhood) -> Asked:
    gold = next((index for index, one in enumerate(read) if one.key == key), None)
    return Asked(tuple(read), gold, around)


def _finite(values: Iterable[float]) -> list[float]:
    return list(filter(math.isfinite, values))


def _share_refused(gate: Gate, values: Sequence[float]) -> float:
    return 1 - sum(map(gate.accepts, values)) / max(1, len(values))


def _signals(router: Router, examples: Examples) -> dict[str, dict[str, list[float]]]:
    """Those of the candidates that the router prefers, by the signal and by the kind of question."""
    kinds = {"answered": examples.found, "unrelated": examples.unrelated, "absent": examples.absent}
    preferred = {kind: [_preferred(router, one) for one in asked] for kind, asked in kinds.items()}
    return {
        signal: {kind: [_value(signal, one) for one in some] for kind, some in preferred.items()} for signal in SIGNALS
    }


def _preferred(router: Router, asked: Asked) -> Considered | None:
    candidates = scored(router, asked.candidates, asked.neighborhood)
    return max(candidates, key=attrgetter("score"), default=None)


def _value(signal: Signal, preferred: Considered | None) -> float:
    """The signal of a candidate; of a question without candidates, one beyond all others."""
    if preferred is None:
        return math.inf if signal in LOW else -math.inf
    return getattr(preferred, signal)
