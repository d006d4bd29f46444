"""One question behind several memories and behind the chat's prefix: read in one pass, answered as by each alone."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain

import pytest

import lcc
from lcc.inference.asking import ask_text
from lcc.inference.attached import attached
from lcc.inference.reader import prefill_chat
from lcc.memory.quantization import quantize_payload
from lcc.modeling.decoding import Prompt
from lcc.modeling.first_tokens import read_first
from lcc.modeling.generation import end_tokens
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat

LONGEST = 24


class Candidates:
    """Memories of the embedded model, of several lengths and one quantised, and the base, which comes last."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer, self.chat = model, tokenizer, ChatFormat.of(tokenizer)
        documents = [document(random.Random(seed), people=2 + seed, attributes=4) for seed in range(3)]
        self.memories = [
            lcc.compile(model, tokenizer, one.text, compiler="flashmem", certify=False, progress=False)
            for one in documents
        ]
        self.memories += [
            replace(self.memories[1], payload=quantize_payload(self.memories[1].payload, dtype))
            for dtype in ("int8", "int4")
        ]
        self.questions = [one.questions()[0].text for one in documents]
        self.visible = []
        for memory in self.memories:
            with attached(model, memory, verify=False) as before:
                self.visible.append(before.visible)
        self.base = len(self.visible)
        self.visible.append(prefill_chat(model, self.chat, ""))

    def prompts(self, question):
        """One a candidate: the base's prefix is followed by no text."""
        asked = [tuple(self.chat.query_ids(question, after_text)) for after_text in (True, False)]
        return [Prompt(asked[number == self.base], prefix=number) for number in range(len(self.visible))]

    def answers(self, first, numbers):
        ends = end_tokens(self.model, self.chat.end).__contains__
        written = first.go_on(numbers, ends, LONGEST)
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]

    def alone(self, question):
        """What each candidate answers today."""
        asked = [
            lcc.ask(self.model, self.tokenizer, memory, [question], max_new_tokens=LONGEST)[0]
            for memory in self.memories
        ]
        return [*asked, ask_text(self.model, self.tokenizer, "", [question], LONGEST)[0]]


@pytest.fixture(scope="module")
def candidates(_embedded):
    return Candidates(*_embedded)


def test_candidates_have_different_lengths(candidates):
    assert len({len(kv) for kv in candidates.visible}) == 4


def test_every_candidate_answers_as_alone(candidates):
    for question in candidates.questions:
        expected = candidates.alone(question)
        first = read_first(candidates.model, candidates.visible, candidates.prompts(question))
        together = candidates.answers(first, range(len(candidates.visible)))
        chosen = [candidates.answers(first, [number])[0] for number in range(len(candidates.visible))]
        assert together == chosen == expected
    assert len(set(expected)) > 1


def test_many_questions_in_one_call(candidates):
    prompts = [candidates.prompts(question) for question in candidates.questions]
    first = read_first(candidates.model, candidates.visible, [*chain(*prompts)])
    answers = candidates.answers(first, range(len(prompts) * len(candidates.visible)))
    assert answers == [*chain(*map(candidates.alone, candidates.questions))]


def test_the_base_alone(candidates):
    question = candidates.questions[0]
    first = read_first(candidates.model, candidates.visible[-1:], [replace(candidates.prompts(question)[-1], prefix=0)])
    assert candidates.answers(first, [0]) == ask_text(candidates.model, candidates.tokenizer, "", [question], LONGEST)
