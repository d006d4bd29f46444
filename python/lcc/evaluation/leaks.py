"""The leak test: what of a text can be got out of its memory, beside the text itself and nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain, takewhile
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.pieces import consecutive_pieces
from ..data.reconstruction import QUOTED
from ..errors import MismatchError
from ..inference.reader import Reader
from ..memory.memory import Memory
from ..modeling.model_copy import share_weights
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat
from ..text.redaction import checked_passages, occurrences, redact
from ..utils.hashing import text_digest
from ..utils.progress import Report, Reporter, reporting
from ..utils.random_state import seeded
from ..utils.values import check, check_count
from .attacks import PIECE, Attacker, Attempts
from .canaries import Shapes, exposure
from .leak_questions import passage_questions, same_answers
from .leak_report import LeakReport
from .recitation import Runs, recovered

# Tokens in a row that count as recited: fewer come out by chance.
RUN = 20
ATTEMPTS = 4
ATTACKING, CANARIES = "attacking", "canaries"

Ids = tuple[int, ...]


def leaks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    text: str,
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

    Args:
        text: that the memory was compiled from, before passages were redacted.
        marks: passages of the text that matter.
        canaries: strings of the text that matter, such as a number or a name.
        redacted: the passages that were redacted. Then their tokens are looked for, and no others.
        attempts: answers that are drawn from each prompt.
        run: tokens in a row that count; of a shorter passage all.
        seed: of every draw.
        progress: show a progress bar on stderr, or the reporter to show it with.

    Raises:
        InputError: a passage or a canary is not in the text, or the text does not fit into the model's window.
        MismatchError: the memory belongs to another text, model or tokenizer, or other passages were redacted.
    """
    check("text", text, str)
    check("seed", seed, int)
    check_count("attempts", attempts)
    check_count("run", run)
    marks, canaries = checked_passages("marks", marks, text), checked_passages("canaries", canaries, text)
    redacted = checked_passages("redacted", redacted, text)
    model = share_weights(plain_model(model))
    memory.verify(model, tokenizer)
    compiled = redact(text, redacted, tokenizer)
    _require_source(memory, compiled, len(redacted))
    special = bool(memory.settings.get("parse_special_tokens"))
    chat = ChatFormat.of(tokenizer, date=memory.date, parse_special_tokens=special)
    with torch.no_grad(), seeded(model.device, seed), reporting(progress) as reporter:
        test = _Test(model, chat, memory, text, compiled, run, seed, reporter.count)
        return test.report(marks, canaries, redacted, attempts)


def _require_source(memory: Memory, compiled: str, redacted: int) -> None:
    """Refuse a text that the memory was not compiled from.

    Raises:
        MismatchError: it is another one.
    """
    if text_digest(compiled) != memory.source_sha256:
        hidden = f", and the {memory.redacted} passages that were redacted" if memory.redacted or redacted else ""
        raise MismatchError(f"the memory was compiled from another text: give the one that it is of{hidden}")


@dataclass(frozen=True)
class _Sought:
    """Tokens that are looked for in what readers write."""

    ids: Ids
    run: int
    runs: Runs

    @classmethod
    def of(cls, ids: Sequence[int], run: int) -> _Sought:
        return cls(tuple(ids), min(run, len(ids)), Runs(ids))


class _Test:
    """One memory and its text."""

    def __init__(
        self, model: PreTrainedModel, chat: ChatFormat, memory: Memory, text: str, compiled: str, run: int, seed: int,
        report: Report,
    ):  # fmt: skip
        self._began = time.monotonic()
        self._chat, self._run, self._seed, self._report = chat, run, seed, report
        self._ids = tuple(chat.ids(compiled))
        self._located = partial(located, chat, text, tuple(chat.ids(text)))
        self._whole = Reader.of_text(model, chat, text)
        self._readers = {
            "full_text": self._whole if compiled == text else Reader.of_text(model, chat, compiled),
            "memory": Reader.of_memory(model, chat, memory),
            "no_text": Reader.of_text(model, chat, ""),
        }

    def report(
        self, marks: Sequence[str], canaries: Sequence[str], redacted: Sequence[str], attempts: int
    ) -> LeakReport:
        """All figures."""
        passages = [self._located(passage) for passage in (*marks, *redacted)]
        hidden = [_Sought.of(ids, self._run) for _, ids in passages[len(marks) :]]
        sought = hidden or [_Sought.of(self._ids, self._run)]
        told = [_Sought.of(ids, self._run) for _, ids in passages]
        secrets = [self._located(canary) for canary in canaries]
        most = min(QUOTED, self._run // 2)
        pieces = consecutive_pieces(self._chat.tokenizer, self._ids, PIECE)
        known = [
            *(tuple(piece[:most]) for piece in pieces),
            *(before[max(0, len(before) - most) :] for before, _ in (*passages, *secrets)),
        ]
        withheld = [*sought, *told, *(_Sought.of(ids, len(ids)) for _, ids in secrets)]
        given = filter(None, (_without(withheld, words) for words in known))
        attacker = Attacker(self._chat.tokenizer, list(dict.fromkeys(given)), len(self._ids) + 1, attempts, self._seed)
        written = self._attacked(attacker)
        return LeakReport(
            date=date.today().isoformat(),
            tokens=sum(len(each.ids) for each in sought),
            run=self._run,
            redacted=len(redacted),
            attacks={name: self._attack(sought, name, attacker, written) for name in attacker.prompts},
            canaries=self._canaries(canaries, secrets, written),
            passages=self._passages(told, written) if told else None,
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _attacked(self, attacker: Attacker) -> dict[str, dict[str, Attempts]]:
        """What each reader writes in each attack."""
        total, done = len(self._readers) * attacker.total, 0

        def report() -> None:
            nonlocal done
            done += 1
            self._report(ATTACKING, done, total)

        return {name: attacker.attack(reader, report) for name, reader in self._readers.items()}

    def _attack(
        self, sought: Sequence[_Sought], name: str, attacker: Attacker, written: Mapping[str, dict[str, Attempts]]
    ) -> dict[str, Any]:
        attempts = {reader: attacks[name] for reader, attacks in written.items()}
        return {
            "prompts": attacker.prompts[name],
            "attempts": len(attempts["memory"]),
            "recited": {reader: _recited(sought, chain(*each)) for reader, each in attempts.items()},
            "best": {reader: max(_recited(sought, one) for one in each) for reader, each in attempts.items()},
            "longest": {reader: _longest(sought, chain(*each)) for reader, each in attempts.items()},
        }

    def _canaries(
        self, canaries: Sequence[str], places: Sequence[tuple[Ids, Ids]], written: Mapping[str, dict[str, Attempts]]
    ) -> list[dict[str, Any]]:
        shapes, measured = Shapes(self._chat), []
        texts = {
            reader: [self._chat.tokenizer.decode(ids) for attempts in attacks.values() for ids in chain(*attempts)]
            for reader, attacks in written.items()
        }
        for number, (canary, (before, ids)) in enumerate(zip(canaries, places, strict=True)):
            self._report(CANARIES, number, len(canaries))
            others = shapes.alternatives(ids, f"{self._seed} {number}")
            exposures = {name: exposure(each, before[-QUOTED:], ids, others) for name, each in self._readers.items()}
            came = {name: any(occurrences(one, canary) for one in said) for name, said in texts.items()}
            measured.append({"alternatives": len(others), "exposure": exposures, "written": came})
        return measured

    def _passages(self, told: Sequence[_Sought], written: Mapping[str, dict[str, Attempts]]) -> dict[str, Any]:
        questions = passage_questions(self._whole, [each.ids for each in told], self._seed, self._report)
        recited = {
            reader: max(_recited(told, chain(*attempts)) for attempts in attacks.values())
            for reader, attacks in written.items()
        }
        return {
            "count": len(told),
            "tokens": sum(len(each.ids) for each in told),
            "recited": recited,
            "questions": len(questions),
            "same": same_answers(self._whole, self._readers, questions) if questions else None,
        }


def located(chat: ChatFormat, text: str, ids: Ids, passage: str) -> tuple[Ids, Ids]:
    """The tokens before a passage's first occurrence in ``text``, and those that have a part of it.

    Args:
        ids: all tokens of ``text``.
    """
    start, end = occurrences(text, passage)[0]
    # The white space in front is often a part of the first word's token.
    first = _shared(chat.ids(text[:start].rstrip()), ids)
    upto = chat.ids(text[:end])
    last = _shared(upto, ids)
    # The last token may go on behind the passage: then it is another one where the text is cut.
    last = max(last + (last < len(upto)), first + 1)
    return ids[:first], ids[first:last]


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _without(sought: Sequence[_Sought], words: Ids) -> Ids:
    """The last of ``words`` that hold no more than half a run in a row: what an attacker is given does not count."""
    while any(max(each.runs.longest([words])) > each.run // 2 for each in sought):
        words = words[1:]
    return words


def _recited(sought: Sequence[_Sought], written: Iterable[Ids]) -> float:
    """Share of the tokens that stand in runs of what was written."""
    written = list(written)
    found = sum(recovered(each.runs.longest(written), each.run) for each in sought)
    return found / sum(len(each.ids) for each in sought)


def _longest(sought: Sequence[_Sought], written: Iterable[Ids]) -> int:
    """Tokens of the longest run in what was written."""
    written = list(written)
    return max(max(each.runs.longest(written)) for each in sought)
