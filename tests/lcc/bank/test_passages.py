"""Windows of a text: no word is lost, neighbours overlap, and sentences stay whole where they can."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lcc.bank.passages import LONGEST_OVERLAP, OVERLAP, SHORTEST, WINDOW, passages_of, windows


@given(st.lists(st.sampled_from(["a", "b.", "c!", "d"]), max_size=200))
def test_windows_hold_every_word_and_overlap(words):
    numbered = [f"{number}{word}" for number, word in enumerate(words)]
    made = [window.split() for window in windows(" \n".join(numbered))]
    joined = made[0] if made else []
    for before, window in pairwise(made):
        shared = before.index(window[0])
        assert before[shared:] == window[: len(before) - shared]
        assert 1 <= len(before) - shared <= LONGEST_OVERLAP
        assert SHORTEST <= len(before) <= WINDOW
        joined = joined + window[len(before) - shared :]
    assert joined == numbered


def test_windows_begin_and_end_with_sentences():
    text = " ".join(f"Sentence {number} has just six words." for number in range(40))
    assert all(window.startswith("Sentence") and window.endswith("words.") for window in windows(text))
    without = " ".join(f"w{number}" for number in range(100))
    first, second, *_ = windows(without)
    assert first.split()[-OVERLAP:] == second.split()[:OVERLAP]


def test_a_conversation_is_found_by_what_the_user_says():
    queries = ["Who?", ("And he?", "Timo.", "Why?")]
    assert [tuple(passage) for passage in passages_of(queries, None)] == [
        ("question", "Who?"),
        ("question", "And he? Why?"),
    ]
    assert passages_of(queries, "One. Two.") == passages_of(queries, None)
    assert [tuple(passage) for passage in passages_of([], "One. Two.")] == [("text", "One. Two.")]
    assert passages_of([], "  ") == []
