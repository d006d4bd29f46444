"""Passages: where they stand, and texts without them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcc.errors import InputError
from lcc.text import redaction
from lcc.text.redaction import MARKER, checked_passages, occurrences, redact

TEXT = "Mara lives in Tarn. Hugo is a baker.\nMara lives in  Tarn, by the river."


def test_white_space_is_alike_and_case_is_not():
    assert [TEXT[start:end] for start, end in occurrences(TEXT, "lives in\nTarn ")] == [
        "lives in Tarn",
        "lives in  Tarn",
    ]
    assert occurrences(TEXT, "mara") == []
    assert occurrences("a.b axb", "a.b") == [(0, 3)]


def test_every_occurrence_goes(tokenizer):
    assert redact(TEXT, ["Mara lives in Tarn"], tokenizer) == ". Hugo is a baker.\n, by the river."
    assert redact(TEXT, (), tokenizer) == TEXT
    # Overlapping and touching passages are one cut.
    assert redact("one two three four", ["one two", "two three"], tokenizer) == " four"


def test_a_cut_makes_no_passage_anew(tokenizer):
    assert redact("x aabb y", ["ab"], tokenizer) == "x  y"


def test_the_marker_of_a_vocabulary_with_words_for_it(tokenizer, monkeypatch):
    monkeypatch.setattr(redaction, "has_words_for", lambda *_: True)
    assert redact(TEXT, ["Hugo", " is  a "], tokenizer).count(MARKER) == 2
    assert redact("Hugo is a baker.", ["Hugo is", "is a"], tokenizer) == f"{MARKER} baker."
    # A passage with a character of the marker would be found in it again.
    assert redact("a […] b]", ["]"], tokenizer) == "a [… b"


@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_passage_is_left(text, passages):
    passages = [passage for passage in passages if passage.strip() and occurrences(text, passage)]
    left = redact(text, passages, None) if not passages else _redacted(text, passages)
    assert not any(occurrences(left, passage) for passage in passages)


def _redacted(text, passages):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "has_words_for", lambda *_: False)
        return redact(text, passages, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("Tarn", "one string"),
        ([""], "empty"),
        ([" \n"], "empty"),
        ([3], "text"),
        (None, "secrets is"),
        (["Tarn", "Oslo"], r"secrets\[1\] is 'Oslo'"),
        (["\ud800"], "text"),
    ],
)
def test_passages_that_cannot_be_used(given, words):
    with pytest.raises(InputError, match=words):
        checked_passages("secrets", given, TEXT)


def test_a_text_that_is_none(tokenizer):
    with pytest.raises(InputError, match="text is 3"):
        redact(3, ["a"], tokenizer)
