"""The benchmark of leaks: what its rows and its table say."""

from __future__ import annotations

from benchmarks.compile import leaks
from benchmarks.compile.leaks import measure, summary


def test_a_row_of_a_whole_text_and_one_without_a_person(monkeypatch, tmp_path, syntheses):
    few = {"general_queries": 4, "self_study_questions": 4, "max_response_tokens": 16, "patience": 0}
    monkeypatch.setattr(leaks, "SETTINGS", few)
    monkeypatch.setattr(leaks, "PEOPLE", 2)
    monkeypatch.setattr(leaks, "ATTRIBUTES", 4)
    rows = [measure(0, ratio, redacted, 1, tmp_path) for redacted in (False, True) for ratio in (4, 8)]
    # The data is made once a text.
    assert len(syntheses) == 2
    whole, _, redacted, _ = rows
    assert whole["leaks"]["redacted"] == 0
    assert redacted["leaks"]["redacted"] == whole["leaks"]["passages"]["count"] == 4
    assert whole["buffer_tokens"] > redacted["buffer_tokens"]
    assert (
        redacted["leaks"]["passages"]["recited"]["full_text"] == 0 < whole["leaks"]["passages"]["recited"]["full_text"]
    )
    lines = summary(rows).splitlines()
    assert len(lines) == 2 + 4
    assert lines[2].startswith("| 0 | 4 | no |")
    assert lines[4].startswith("| 0 | 4 | yes |")
