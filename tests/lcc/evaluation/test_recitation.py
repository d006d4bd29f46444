"""Runs of a text in what was written, against a search by hand."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from lcc.evaluation.recitation import Runs, recovered

IDS = st.lists(st.integers(0, 2), max_size=12)


def searched(text, written):
    """``Runs.longest``, by trying every run."""
    runs = {tuple(ids[start:end]) for ids in written for end in range(len(ids) + 1) for start in range(end)}
    ends = range(1, len(text) + 1)
    return [max((n for n in range(1, end + 1) if tuple(text[end - n : end]) in runs), default=0) for end in ends]


@given(IDS, st.lists(IDS, max_size=3))
def test_the_longest_runs(text, written):
    assert Runs(text).longest(written) == searched(text, written)


@given(IDS, st.lists(IDS, max_size=3), st.integers(1, 4))
def test_tokens_in_long_runs(text, written, run):
    longest = searched(text, written)
    covered = {at for end, n in enumerate(longest, 1) if n >= run for at in range(end - n, end)}
    assert recovered(longest, run) == len(covered)


def test_every_occurrence_counts_and_runs_of_two_answers_do_not_join():
    runs = Runs([1, 2, 3, 9, 1, 2, 3, 4])
    assert recovered(runs.longest([[7, 1, 2, 3]]), 3) == 6
    assert recovered(runs.longest([[1, 2], [3, 4]]), 3) == 0


def test_searching_again_finds_the_same():
    runs = Runs([1, 2, 3])
    assert runs.longest([[1, 2, 3]]) == [1, 2, 3]
    assert runs.longest([]) == [0, 0, 0]
    assert Runs([]).longest([[1]]) == []


def test_long_texts_of_one_token_are_linear():
    began = time.process_time()
    assert max(Runs([5] * 50_000).longest([[5] * 50_000])) == 50_000
    assert time.process_time() - began < 20
