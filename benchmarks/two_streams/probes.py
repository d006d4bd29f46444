"""What a reader can do with a text that it has as K and V: repeat it, enter it in the middle, answer about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lcc.embedded_model.lessons import CONTINUE_REQUEST
from lcc.modeling.generation import generate_after
from lcc.modeling.kv import KV
from lcc.modeling.scoring import Completion, completion_states
from lcc.modeling.shared_cache import SharedCache
from lcc.synthetic.exam import score
from lcc.synthetic.people import ASKED_WORDINGS, ATTRIBUTES, Document, Fact, Question
from lcc.text.chat_format import ChatFormat
from lcc.text.prompts import REPEAT_REQUEST

ANSWER_TOKENS, SNIPPET_WORDS, BATCH, MOVED = 16, 4, 64, 5


@dataclass(frozen=True)
class Probe:
    """A model that has read ``doc`` as the rotated K and V ``visible``, the chat's prefix among them."""

    model: PreTrainedModel
    chat: ChatFormat
    doc: Document
    visible: KV

    def measure(self, general: Sequence[Question], asked: Collection[Fact]) -> dict[str, float | None]:
        """Shares in [0, 1] of what comes out right, None of nothing; ``asked`` were asked about while compiling."""
        return {
            **self._questions(asked),
            **self._entries(),
            **self._repetition(),
            "general": score(self._answers([self.chat.query_ids(query.text) for query in general]), general),
        }

    def _questions(self, asked: Collection[Fact]) -> dict[str, float | None]:
        """Questions in every wording, and parts of them."""
        facts = [fact for fact in self.doc.facts for _ in wordings(fact)]
        queries = [self.chat.query_ids(text) for fact in self.doc.facts for text in wordings(fact)]
        right = [states(answer, fact) for answer, fact in zip(self._answers(queries), facts, strict=True)]
        new = [number % len(wordings(fact)) >= ASKED_WORDINGS for number, fact in enumerate(facts)]
        parts = {
            "questions": [True] * len(facts),
            "questions, text in the answer's words": [fact.statement == 0 for fact in facts],
            "questions, text in other words": [fact.statement != 0 for fact in facts],
            "questions, fact asked, new wording": [f in asked and n for f, n in zip(facts, new, strict=True)],
            "questions, fact not asked": [fact not in asked for fact in facts],
        }
        return {
            name: share([r for r, counts in zip(right, part, strict=True) if counts]) for name, part in parts.items()
        }

    def _entries(self) -> dict[str, float | None]:
        """Values that come next where the sentence that states them is begun, after three kinds of request."""
        facts, chat = self.doc.facts, self.chat
        stems = [stem(fact) for fact in facts]
        entries = {
            "question, sentence begun": [
                chat.query_ids(wordings(f)[0]) + chat.ids(s) for f, s in zip(facts, stems, strict=True)
            ],
            "repetition, sentence begun": [chat.query_ids(REPEAT_REQUEST) + chat.ids(s) for s in stems],
            "continuation": [
                chat.query_ids(CONTINUE_REQUEST.format(snippet=" ".join(s.split()[-SNIPPET_WORDS:]))) for s in stems
            ],
        }
        return {
            name: share([words(a)[:1] == [f.value] for a, f in zip(self._answers(queries, 2), facts, strict=True)])
            for name, queries in entries.items()
        }

    def _repetition(self) -> dict[str, float | None]:
        """The text repeated: token by token, its sentences in another order, from another place, free-running."""
        chat, facts = self.chat, self.doc.facts
        request = chat.query_ids(REPEAT_REQUEST)
        (recited,) = generate_after(
            self.model, SharedCache(self.visible), [request], chat.end, max_new_tokens=len(chat.ids(self.doc.text)) + 8
        )
        recitation = chat.tokenizer.decode(recited, skip_special_tokens=True)
        asked = [[*request, *recited, *chat.turn_ids(wordings(fact)[0])] for fact in facts]
        answers = self._answers(asked)
        reordered = [*facts[len(facts) // 2 :], *facts[: len(facts) // 2]]
        further = moved(self.model, self.visible, -MOVED)
        return {
            "repetition, values": self._repeated(facts, self.visible),
            "repetition in another order, values": self._repeated(reordered, self.visible),
            "repetition moved by some positions, values": self._repeated(facts, further),
            "sentences recited": share([fact.sentence in recitation for fact in facts]),
            "questions after reciting": share([states(a, fact) for a, fact in zip(answers, facts, strict=True)]),
        }

    @torch.no_grad()
    def _repeated(self, facts: Sequence[Fact], visible: KV) -> float | None:
        """Values predicted where the text is repeated sentence by sentence, each after all that is before it."""
        values, ids = [], []
        for fact in facts:
            values.append(len(ids) + value_at(self.chat, fact.sentence, fact))
            ids += self.chat.ids(fact.sentence)
        completion = Completion(tuple(self.chat.query_ids(REPEAT_REQUEST)), tuple(ids))
        predicted = self.model.lm_head(completion_states(self.model, visible, [completion])).argmax(-1)
        return share([predicted[at].item() == ids[at] for at in values])

    def _answers(self, queries: list[list[int]], tokens: int = ANSWER_TOKENS) -> list[str]:
        """Greedy answers to queries that are no chat's turns alone: an answer may be begun in them."""
        answers = []
        for start in range(0, len(queries), BATCH):
            batch, cache = queries[start : start + BATCH], SharedCache(self.visible)
            rows = generate_after(
                self.model, cache, batch, self.chat.end, self.chat.prefix_ids[0], max_new_tokens=tokens
            )
            answers += [self.chat.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
        return answers


def wordings(fact: Fact) -> list[str]:
    """The questions that ask for ``fact``."""
    return [wording.format(n=fact.name) for wording in ATTRIBUTES[fact.attribute].questions]


def stem(fact: Fact) -> str:
    """The sentence that states ``fact``, up to its value."""
    return fact.sentence[: fact.sentence.rindex(fact.value)].strip()


def value_at(chat: ChatFormat, sentence: str, fact: Fact) -> int:
    """Which token of ``sentence`` is the value of ``fact``."""
    return len(chat.ids(sentence[: sentence.rindex(fact.value)].strip()))


def moved(model: PreTrainedModel, visible: KV, by: int) -> KV:
    """Rotated K and V that start at position 0, ``by`` positions further."""
    return visible.moved(model, by)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def states(answer: str, fact: Fact) -> bool:
    """Whether the value is among the answer's words."""
    return fact.value in words(answer)


def share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
