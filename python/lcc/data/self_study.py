"""Questions that the frozen model itself asks about the text: plain ones, hard ones, and those that go on from answers.

What is never asked is what a memory forgets. So plain questions are asked about one piece of the text after another:
about the whole text at once a model keeps coming back to the same few facts. Of the hard questions, which join, compare
or count, half are asked about longer pieces and half about the whole text; and a conversation needs answers.

A question is kept if it came to an end, is new, and is about the text: the teacher answers it otherwise without the
text, and no otherwise with another section of it. (One that goes on from an answer is about what that is about.) So
asking goes on in rounds, and each round asks as often as the kept share of the rounds before makes likely.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle, islice, product
from typing import Any

from ..errors import InputError
from ..modeling.decoding import Prompt, Sampling
from ..modeling.kv import KV
from ..text.chat_format import Query, turns_of
from ..text.context import Context
from ..utils.progress import Report
from ..utils.settings import AUTO
from .askers import FOLLOW_UP, HARD, PLAIN, Asker, usable_askers
from .pieces import sentence_pieces, text_pieces
from .samples import Sample
from .settings import DataSettings
from .teacher import Teacher

# Samples of a piece in one round, at most; rounds; and a piece rests after so many rounds in a row that each kept no
# more than this share of its questions.
MOST, ROUNDS, BARREN, SATURATED = 64, 12, 3, 1 / 8
# Samples of each of so many pieces that an asker is tried with.
TRIAL, TRIAL_PIECES = 4, 6
# More is asked than is missing, by this factor: a round for the few that still miss costs more.
SPARE = 1.1
# A question about a section is about that alone if another section beside it changes the answer by so much at most, in
# nats a token: counts of all people in the text, for one, are told by no section.
UNMOVED = 0.5
# Pieces of text for hard questions, in pieces for plain ones.
HARD_PIECES = 2
# Turns of the longest conversation.
TURNS = 4
STAGE = "asking itself"


@dataclass
class Yield:
    """What came of asking; each count is a part of the one before.

    Attributes:
        asker: the name of the one that asked.
        sampled: questions that were begun.
        ended: that came to an end, as questions do.
        distinct: that had not been asked before.
        about: that are about the text.
        kept: that were not too many.
    """

    asker: str
    sampled: int = 0
    ended: int = 0
    distinct: int = 0
    about: int = 0
    kept: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def self_study(
    teacher: Teacher, settings: DataSettings, seed: int, report: Report
) -> tuple[list[Sample], dict[str, Any]]:
    """Distinct questions and conversations with the teacher's responses, each kind's share as the settings say.

    Returns:
        Samples, with weights to draw them by; and what came of asking, as ``Yield`` has it.

    Raises:
        InputError: ``self_study_asker`` is none that can ask with this tokenizer.
    """
    asker = chosen_asker(teacher, settings, seed)
    study = SelfStudy(teacher, settings, asker, seed, report)
    total, length = settings.asked, settings.self_study_piece
    hard, follow_ups = int(total * settings.self_study_hard), int(total * settings.self_study_follow_ups)
    pieces = pieces_of(teacher.context, asker, length)
    longer = pieces_of(teacher.context, asker, HARD_PIECES * length)

    plain = study.gather(PLAIN, pieces, total - hard - follow_ups)
    hard_ones = study.gather(HARD, longer, hard // 2)
    hard_ones |= study.gather(HARD, [Part("text")], hard - len(hard_ones))
    samples = _weighted(plain) + _weighted(hard_ones)
    starts = [found.sample for found in plain.values()]
    for turn in range(1, TURNS):
        wanted = follow_ups // (TURNS - turn)
        found = study.gather(FOLLOW_UP, study.conversations(starts, wanted), wanted)
        starts = [each.sample for each in found.values()]
        samples += starts
        follow_ups -= wanted
    report(STAGE, study.result.kept, study.result.kept, f"{study.result.sampled} sampled")
    return samples, study.result.to_dict()


@dataclass
class Found:
    """A question that is kept, and how often it was sampled."""

    sample: Sample
    times: int


@dataclass
class Part:
    """What questions are asked about.

    Attributes:
        name: tells it from the other parts of its kind.
        piece: tokens of the text; None: the whole text.
        so_far: the conversation that the question goes on from.
        sampled: how often it was asked about.
        barren: rounds in a row that gave no new question.
    """

    name: str
    piece: tuple[int, ...] | None = None
    so_far: tuple[str, ...] = ()
    sampled: int = 0
    barren: int = 0


def pieces_of(context: Context, asker: Asker, length: int) -> list[Part]:
    """The pieces of a text that ``asker`` is shown one at a time, about ``length`` tokens each."""
    ids = context.context_ids
    whole = asker.whole_sentences
    pieces = sentence_pieces(context.chat.tokenizer, ids, length) if whole else text_pieces(ids, length)
    return [Part(str(number), tuple(piece)) for number, piece in enumerate(pieces)]


def _query(part: Part, text: str) -> Query:
    """The question, behind the conversation that it goes on from."""
    return (*part.so_far, text) if part.so_far and text else text


def _weighted(found: Mapping[Query, Found]) -> list[Sample]:
    """The samples with weights sqrt(times sampled), normalised to mean 1 within a kind of question.

    Rare kinds (counting) keep their share beside common ones (joins).
    """
    mean = sum(math.sqrt(each.times) for each in found.values()) / max(1, len(found))
    return [replace(each.sample, weight=math.sqrt(each.times) / mean) for each in found.values()]


def chosen_asker(teacher: Teacher, settings: DataSettings, seed: int) -> Asker:
    """The asker that is set, or of those that can ask the one with the largest share of samples that are kept."""
    usable = {asker.name: asker for asker in usable_askers(teacher.chat, teacher.ends)}
    wanted = settings.self_study_asker
    if wanted == AUTO and len(usable) == 1:
        return next(iter(usable.values()))
    if wanted == AUTO:
        tried = {name: _tried(teacher, settings, asker, seed) for name, asker in usable.items()}
        return usable[max(tried, key=tried.__getitem__)]
    if wanted not in usable:
        raise InputError(f"self_study_asker is {wanted!r}; with this tokenizer there are {', '.join(usable)}")
    return usable[wanted]


def _tried(teacher: Teacher, settings: DataSettings, asker: Asker, seed: int) -> int:
    """How many of the first samples about a few pieces are kept."""
    study = SelfStudy(teacher, settings, asker, seed, lambda *_: None)
    pieces = pieces_of(teacher.context, asker, settings.self_study_piece)
    some = pieces[:: max(1, len(pieces) // TRIAL_PIECES)][:TRIAL_PIECES]
    found: dict[Query, Found] = {}
    study.round(PLAIN, some, TRIAL, found, TRIAL * len(some))
    return len(found)


@dataclass
class SelfStudy:
    """A teacher that asks itself by one asker."""

    teacher: Teacher
    settings: DataSettings
    asker: Asker
    seed: int
    report: Report
    result: Yield = field(init=False)

    def __post_init__(self) -> None:
        self.result = Yield(self.asker.name)
        past = self.teacher.context.past
        self._known: set[Query] = set(past.questions if past else ())
        self._seen: dict[bool, KV] = {}
        self._begun: Counter[str] = Counter()
        self._rng = random.Random(self.seed)

    def gather(self, kind: str, parts: Sequence[Part], wanted: int) -> dict[Query, Found]:
        """Up to ``wanted`` questions that are kept, about as many of each part."""
        found: dict[Query, Found] = {}
        sampled = self.result.sampled
        alive = list(parts)
        for _ in range(ROUNDS):
            missing = wanted - len(found)
            if missing <= 0 or not alive:
                break
            share = max(len(found), 1) / max(self.result.sampled - sampled, 1)
            self.round(kind, alive, min(MOST, math.ceil(SPARE * missing / len(alive) / share)), found, wanted)
            alive = [part for part in alive if part.barren < BARREN]
        return found

    def round(self, kind: str, parts: Sequence[Part], count: int, found: dict[Query, Found], wanted: int) -> None:
        """Ask ``count`` times about each part; adds what is kept to ``found``, until there are ``wanted``."""
        self._show()
        written = self._sample(kind, parts, count)
        times = Counter(query for _, query in written if query)
        for query in times.keys() & found.keys():
            found[query].times += times[query]
        about = self._about_the_text(kind, [query for query in times if query not in self._known])
        for query in list(about)[: wanted - len(found)]:
            found[query] = Found(about[query], times[query])
            self.result.kept += 1
        asked_of = Counter(part.name for part, query in written if query)
        new_of = Counter(part.name for part, query in written if query in about)
        for part in parts:
            fruitful = new_of[part.name] > SATURATED * asked_of[part.name]
            part.barren = 0 if fruitful else part.barren + 1
        self._show()

    def conversations(self, starts: Sequence[Sample], wanted: int) -> list[Part]:
        """Conversations to go on from: question and answer of samples whose answer came to an end."""
        ended = [sample for sample in starts if len(sample.response_ids) <= self.teacher.longest]
        chosen = islice(cycle(self._rng.sample(ended, len(ended))), wanted)
        turns = [(*turns_of(s.query), self.teacher.text_of(s.response_ids[:-1])) for s in chosen]
        return [Part(f"{number} {'|'.join(so_far)}", None, so_far) for number, so_far in enumerate(turns)]

    def _sample(self, kind: str, parts: Sequence[Part], count: int) -> list[tuple[Part, Query]]:
        """What is asked about each part, those of all parts in turn; empty where no question came of it."""
        visible = self._visible(parts[0].piece is None)
        asked: list[tuple[Part, int]] = []
        prompts: dict[tuple[str, int], Prompt] = {}
        for one, (place, part) in product(range(count), enumerate(parts)):
            number = part.sampled + one
            asked.append((part, number))
            ids = (*(part.piece or ()), *self.asker.after(kind, part.so_far))
            begun = tuple(self.asker.begun(kind, self._begun[kind] + place * count + one))
            if len(ids) + len(begun) <= self.teacher.room(visible):
                prompts[part.name, number] = Prompt(ids, begun, f"{self.asker.name} {kind} {part.name} {number}")
        for part in parts:
            part.sampled += count
        self._begun[kind] += count * len(parts)
        sampled = self.result.sampled

        def show(done: int) -> None:
            self.result.sampled = sampled + done
            self._show()

        sampling = Sampling(self.settings.self_study_temperature, str(self.seed))
        texts = self.teacher.write(
            kind, visible, list(prompts.values()), self.asker.ends, sampling, self.asker.question, show
        )
        self.result.ended += sum(map(bool, texts))
        written = dict(zip(prompts, texts, strict=True))
        return [(part, _query(part, written.get((part.name, number), ""))) for part, number in asked]

    def _visible(self, whole: bool) -> KV:
        """K and V of what stands before a piece, or of that and the whole text."""
        before, teacher = tuple(self.asker.before()), self.teacher
        if before == teacher.context.prefix_ids:
            return teacher.text_kv if whole else teacher.prefix_kv
        if whole not in self._seen:
            self._seen[whole] = teacher.read(before, whole)
        return self._seen[whole]

    def _show(self, answered: int | None = None) -> None:
        figures = f"{self.result.sampled} sampled" + ("" if answered is None else f" · {answered} answered")
        self.report(STAGE, self.result.kept, self.settings.asked, figures)

    def _about_the_text(self, kind: str, queries: Sequence[Query]) -> dict[Query, Sample]:
        """The samples of those queries that the teacher answers otherwise without the text."""
        self.result.distinct += len(queries)
        self._known.update(queries)
        samples = self.teacher.answer("self_study", dict.fromkeys(queries, 1.0), self._show)
        unmoved = [s for s, kl in zip(samples, self.teacher.wider_kl(samples), strict=True) if kl <= UNMOVED]
        about = {sample.query: sample for sample in unmoved}
        if kind != FOLLOW_UP:
            divergence, least = self.teacher.text_kl(unmoved), self.settings.self_study_min_kl
            about = {sample.query: sample for sample, kl in zip(unmoved, divergence, strict=True) if kl >= least}
        self.result.about += len(about)
        return about
