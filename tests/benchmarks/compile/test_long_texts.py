"""The benchmarks of long texts, from the text to a row."""

from __future__ import annotations

import copy

import pytest

from benchmarks.common.models import load
from benchmarks.compile import long_suites, long_texts
from lcc.evaluation import Example
from lcc.synthetic.people import Document
from lcc.text.context import build_context

SMALL = {
    "steps": 1, "batch": 2, "general_queries": 4, "self_study_questions": 6, "max_response_tokens": 24,
    "self_study_hard": 0.0, "self_study_follow_ups": 0.0, "across_questions": 2,
}  # fmt: skip
WINDOW = 480


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    model, tokenizer = load()
    narrow = copy.deepcopy(model)
    for module in (long_texts, long_suites):
        monkeypatch.setattr(module, "SETTINGS", SMALL)
        monkeypatch.setattr(module, "load", lambda: (narrow, tokenizer))
    monkeypatch.setattr(long_texts, "ALONE", 1)


def test_a_row_of_a_long_text():
    row = long_texts.measure(WINDOW, 1.0, 0)
    assert row["sections"] > 1
    assert row["comparisons"]["full_text"] > 0.5 > row["together"]
    assert 0 <= row["alone"] < 0.9
    assert row["questions"] <= long_texts.ASKED


@pytest.mark.parametrize("name", ["needle", "key_value"])
def test_a_row_of_a_suite(name):
    row = long_suites.measure(name, WINDOW, 1.2, 0)
    assert row["sections"] > 1
    assert row["memory"].keys() == row["section"].keys()


def test_facts_belong_to_the_sections_that_state_them_whole():
    model, tokenizer = load()
    doc = long_texts.text_of(300, 0)
    halves = [Document(doc.facts[:8]), Document(doc.facts[8:])]
    sections = [build_context(model, tokenizer, half.text, 8) for half in halves]
    assert [part.facts for part in long_texts.by_section(doc, sections)] == [half.facts for half in halves]
    told = halves[1].facts[0]
    example = Example(doc.text, "Who?", (told.name, told.value), metric="string_match")
    assert long_suites.holding(example, sections) is sections[1]
