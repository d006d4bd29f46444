"""The suite ``stories``: what ships is whole, and is scored as it says."""

from __future__ import annotations

from collections import Counter

import pytest

from lcc.evaluation import load_examples, load_general
from lcc.evaluation.metrics import contains, normalize
from lcc.evaluation.stories import (
    ADMITTING,
    HELD_OUT,
    LEVELS,
    NAMES,
    SEARCHED,
    UNANSWERABLE,
    load_story,
    unrelated_instructions,
)
from lcc.evaluation.stories import stories as all_examples
from lcc.text.queries import load_queries


def test_six_texts_are_held_out():
    assert len(set(NAMES)) == len(NAMES) == 12
    assert len(HELD_OUT) == 6
    assert not set(HELD_OUT) & set(SEARCHED)
    assert len({load_story(name).kind for name in NAMES}) >= 9


@pytest.mark.parametrize("name", NAMES)
def test_a_story(name):
    story = load_story(name)
    assert story.name == name
    assert 500 <= len(story.text.split()) <= 900
    assert Counter(question["level"] for question in story.questions) == dict(zip(LEVELS, (5, 5, 5, 3), strict=True))
    assert len({question["question"] for question in story.questions}) == 18
    for question in story.questions:
        assert bool(question["answers"]) == (question["level"] != UNANSWERABLE)
        assert not contains(question["question"], question["answers"] or ["\x00"])
        if question["level"] == "easy":
            assert contains(story.text, question["answers"])


def test_contains_wants_whole_words():
    assert contains("It is the Grey Heron, of course.", ["grey heron"]) == 1
    assert contains("It left at 8:15 a.m.", ["8:15"]) == 1
    assert contains("There were twenty-one of them.", ["one"]) == 0
    assert contains("forty", ["four", "forty"]) == 1
    assert contains("", ["x"]) == 0


def test_what_the_text_does_not_tell_is_admitted():
    example = next(e for e in all_examples() if e.task == f"stories {UNANSWERABLE}")
    assert example.answers == ADMITTING
    assert contains("The text does not say who it was.", ADMITTING) == 1
    assert contains("The name is not mentioned in the text.", ADMITTING) == 1
    assert contains("His name was Tam.", ADMITTING) == 0


def test_the_suite_is_a_source():
    examples = load_examples("stories", 12)
    assert len(examples) == 12 * 18
    assert {example.metric for example in examples} == {"contains"}
    assert len({example.context for example in load_examples("stories", 2)}) == 2
    beside = load_general("stories_general", 20, ["A text."])
    assert len(beside) == 20
    assert all(example.general for example in beside)


def test_instructions_that_compile_asks_are_not_examined():
    asked = {normalize(query) for query in load_queries("python/lcc/text/instructions.jsonl")}
    assert not {normalize(example.question) for example in unrelated_instructions()} & asked
