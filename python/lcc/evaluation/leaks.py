"""The leak test: what of a text can be got out of its memory, beside the text itself and nothing."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import chain
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.pieces import consecutive_pieces
from ..data.reconstruction import QUOTED
from ..errors import InputError, MismatchError
from ..inference.reader import Reader
from ..memory.memory import Memory
from ..memory.words import words_of
from ..modeling.model_copy import share_weights
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..text.redaction import checked_passages, occurrences, redact
from ..utils.hashing import text_digest, texts_digest
from ..utils.progress import Report, Reporter, reporting
from ..utils.random_state import seeded
from ..utils.values import check, check_count
from .attacks import PIECE, Attacker, Attempts
from .canaries import Shapes, exposure
from .known_texts import KnownTexts, Place
from .leak_questions import passage_questions, same_answers
from .leak_report import LeakReport
from .sought import Sought, longest_run, recited, without

# Tokens in a row that count as recited: fewer come out by chance.
RUN = 20
ATTEMPTS = 4
ATTACKING, CANARIES = "attacking", "canaries"

Ids = tuple[int, ...]


def leaks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory | str | os.PathLike,
    text: str | Sequence[str],
    *,
    marks: Sequence[str] = (),
    canaries: Sequence[str] = (),
    redacted: Sequence[str] = (),
    attempts: int = ATTEMPTS,
    run: int = RUN,
    seed: int = 0,
    progress: bool | Reporter = True,
) -> LeakReport:
    """Try to get ``text`` out of its ``memory``; the same is tried on the full text, and on the model alone.

    Attackers know words of the text, ``run`` / 2 and 10 at most, before places about 50 tokens apart and before each
    passage. They ask for the text greedily (``asked``), and draw answers at temperature 0.8 (``sampled``). A token is
    recited if it stands in a run of at least ``run`` tokens that one answer has in a row.

    The exposure of a canary is log2 of its rank among up to 255 strings of the same shape, taken from log2 of their
    number: "The Secret Sharer" (Carlini et al., arXiv 1802.08232). About each passage the model asks itself up to 12
    questions.

    A text that the model cannot read and repeat within its window is read in parts. What any part tells is the full
    text's. The questions and answers that the memory's file holds are searched too: they need no model.

    Args:
        memory: or its file.
        text: that the memory was compiled from, before passages were redacted. Of a memory that took more texts in all
            of them, the oldest first.
        marks: passages of the text that matter.
        canaries: strings of the text that matter, such as a number or a name.
        redacted: the passages that were redacted. Then their tokens are looked for, and no others.
        attempts: answers that are drawn from each prompt.
        run: tokens in a row that count; of a shorter passage all.
        seed: of every draw.
        progress: show a progress bar on stderr, or the reporter to show it with.

    Raises:
        InputError: a passage or a canary is not in the text.
        MemoryFileError: the memory's file cannot be read.
        MismatchError: the memory belongs to another text, model or tokenizer, or other passages were redacted.
    """
    texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Iterable) else text
    check("text", texts, list[str])
    if not all(one.strip() for one in texts) or not texts:
        raise InputError("text is empty: give the one that the memory was compiled from")
    check("seed", seed, int)
    check_count("attempts", attempts)
    check_count("run", run)
    marks, canaries = checked_passages("marks", marks, *texts), checked_passages("canaries", canaries, *texts)
    redacted = checked_passages("redacted", redacted, *texts)
    memory = Memory.of(memory)
    model = share_weights(plain_model(model))
    memory.verify(model, tokenizer)
    compiled = [redact(one, [each for each in redacted if occurrences(one, each)], tokenizer) for one in texts]
    _require_source(memory, compiled, len(redacted))
    special = bool(memory.settings.get("parse_special_tokens"))
    chat = ChatFormat.of(tokenizer, date=memory.date, parse_special_tokens=special)
    with torch.no_grad(), seeded(model.device, seed), reporting(progress) as reporter:
        test = _Test(model, chat, memory, texts, compiled, run, seed, reporter.count)
        return test.report(marks, canaries, redacted, attempts)


def _require_source(memory: Memory, compiled: Sequence[str], redacted: int) -> None:
    """Refuse texts that the memory was not compiled from.

    Raises:
        MismatchError: they are others.
    """
    if texts_digest(map(text_digest, compiled)) != memory.source_sha256:
        which = "the one that it is of"
        if memory.update:
            which = "the one that it was compiled from and, in order, all that it took in since"
        hidden = f", and the {memory.redacted} passages that were redacted" if memory.redacted else ""
        if redacted and not memory.redacted:
            hidden = "; no passage of it was redacted"
        raise MismatchError(f"the memory was compiled from another text: give {which}{hidden}")


class _Test:
    """One memory and its texts."""

    def __init__(
        self, model: PreTrainedModel, chat: ChatFormat, memory: Memory, texts: list[str], compiled: list[str],
        run: int, seed: int, report: Report,
    ):  # fmt: skip
        self._began = time.monotonic()
        self._chat, self._run, self._seed, self._report = chat, run, seed, report
        self._whole = KnownTexts(model, chat, texts, run)
        self._compiled = self._whole if compiled == texts else KnownTexts(model, chat, compiled, run)
        self._readers = {
            "full_text": self._compiled.readers,
            "memory": [Reader.of_memory(model, chat, memory)],
            "no_text": [Reader.of_text(model, chat, "")],
        }
        self._words = words_of(memory)

    def report(
        self, marks: Sequence[str], canaries: Sequence[str], redacted: Sequence[str], attempts: int
    ) -> LeakReport:
        """All figures."""
        passages = [self._whole.place(passage) for passage in (*marks, *redacted)]
        hidden = [Sought.of(place.ids, self._run) for place in passages[len(marks) :]]
        sought = hidden or [Sought.of(ids, self._run) for ids in self._compiled.ids]
        told = [Sought.of(place.ids, self._run) for place in passages]
        secrets = [self._whole.place(canary) for canary in canaries]
        withheld = [*sought, *told, *(Sought.of(place.ids, len(place.ids)) for place in secrets)]
        attackers = self._attackers([*passages, *secrets], withheld, attempts)
        prompts = attackers["memory"][0].prompts
        written = self._attacked(attackers)
        return LeakReport(
            date=date.today().isoformat(),
            tokens=sum(len(each.ids) for each in sought),
            run=self._run,
            redacted=len(redacted),
            attacks={name: self._attack(sought, name, count, written) for name, count in prompts.items()},
            canaries=self._canaries(canaries, secrets, written),
            passages=self._passages(passages, told, written) if told else None,
            file=self._in_the_file(sought, canaries),
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _attackers(
        self, places: Sequence[Place], withheld: Sequence[Sought], attempts: int
    ) -> dict[str, list[Attacker]]:
        """Who attacks each reader. Who attacks a part of the text knows words of that part, and those before places."""
        most = min(QUOTED, self._run // 2)

        def attacker(pieces: Iterable[Sequence[int]], tokens: int) -> Attacker:
            before = (place.before[max(0, len(place.before) - most) :] for place in places)
            given = (without(withheld, words) for words in (*(tuple(piece[:most]) for piece in pieces), *before))
            known = list(dict.fromkeys(filter(None, given)))
            return Attacker(self._chat.tokenizer, known, tokens + 1, attempts, self._seed)

        parts = [part.ids for part in self._compiled.parts]
        pieces = [consecutive_pieces(self._chat.tokenizer, ids, PIECE) for ids in parts]
        of_all = attacker(chain(*pieces), sum(map(len, self._compiled.ids)))
        of_parts = [attacker(own, len(ids)) for own, ids in zip(pieces, parts, strict=True)]
        return {"full_text": of_parts, "memory": [of_all], "no_text": [of_all]}

    def _attacked(self, attackers: Mapping[str, Sequence[Attacker]]) -> dict[str, dict[str, Attempts]]:
        """What is written in each attack: by the model behind the text what it writes behind each part."""
        total, done = sum(each.total for one in attackers.values() for each in one), 0

        def report() -> None:
            nonlocal done
            done += 1
            self._report(ATTACKING, done, total)

        written = {}
        for name, readers in self._readers.items():
            pairs = zip(attackers[name], readers, strict=True)
            parts = [attacker.attack(reader, report) for attacker, reader in pairs]
            written[name] = {attack: _together([part[attack] for part in parts]) for attack in parts[0]}
        return written

    def _attack(
        self, sought: Sequence[Sought], name: str, prompts: int, written: Mapping[str, dict[str, Attempts]]
    ) -> dict[str, Any]:
        attempts = {reader: attacks[name] for reader, attacks in written.items()}
        return {
            "prompts": prompts,
            "attempts": len(attempts["memory"]),
            "recited": {reader: recited(sought, chain(*each)) for reader, each in attempts.items()},
            "best": {reader: max(recited(sought, one) for one in each) for reader, each in attempts.items()},
            "longest": {reader: longest_run(sought, chain(*each)) for reader, each in attempts.items()},
        }

    def _canaries(
        self, canaries: Sequence[str], places: Sequence[Place], written: Mapping[str, dict[str, Attempts]]
    ) -> list[dict[str, Any]]:
        shapes, measured = Shapes(self._chat), []
        texts = {
            reader: [self._chat.tokenizer.decode(ids) for attempts in attacks.values() for ids in chain(*attempts)]
            for reader, attacks in written.items()
        }
        for number, (canary, place) in enumerate(zip(canaries, places, strict=True)):
            others = shapes.alternatives(place.ids, f"{self._seed} {number}")
            exposures = {
                name: max(exposure(each, place.before[-QUOTED:], place.ids, others) for each in readers)
                for name, readers in self._readers.items()
            }
            came = {name: any(occurrences(one, canary) for one in said) for name, said in texts.items()}
            measured.append({"alternatives": len(others), "exposure": exposures, "written": came})
            self._report(CANARIES, number + 1, len(canaries))
        return measured

    def _passages(
        self, places: Sequence[Place], told: Sequence[Sought], written: Mapping[str, dict[str, Attempts]]
    ) -> dict[str, Any]:
        same: dict[str, list[bool]] = {name: [] for name in self._readers}
        for whole in self._whole.readers:
            passages = [place.ids for place in places if place.reader is whole]
            if not passages:
                continue
            questions = passage_questions(whole, passages, self._seed, self._report)
            for name, answers in same_answers(whole, self._readers, questions).items():
                same[name] += answers
        return {
            "count": len(told),
            "tokens": sum(len(each.ids) for each in told),
            "recited": {
                reader: max(recited(told, chain(*attempts)) for attempts in attacks.values())
                for reader, attacks in written.items()
            },
            "questions": len(same["memory"]),
            "same": {name: statistics.fmean(found) for name, found in same.items()} if same["memory"] else None,
        }

    def _in_the_file(self, sought: Sequence[Sought], canaries: Sequence[str]) -> dict[str, Any]:
        """What the file says in words, for which nobody has to be asked."""
        said = [tuple(self._chat.ids(one)) for one in self._words]
        return {
            "strings": len(said),
            "recited": recited(sought, said),
            "longest": longest_run(sought, said),
            "canaries": [any(occurrences(one, canary) for one in self._words) for canary in canaries],
        }


def _together(parts: Sequence[Attempts]) -> Attempts:
    """The attempts at several parts of a text as attempts at all of it."""
    return [list(chain(*attempts)) for attempts in zip(*parts, strict=True)]
