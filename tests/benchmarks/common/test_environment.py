"""Where a figure was measured, in a checkout and in a tree without its history."""

from __future__ import annotations

from benchmarks.common import environment


def test_the_commit_is_named_by_whoever_brought_the_tree(monkeypatch):
    monkeypatch.setenv(environment.COMMIT, "abc1234")
    assert environment.describe()["commit"] == "abc1234"


def test_without_git_and_without_a_name_the_commit_is_unknown(monkeypatch):
    monkeypatch.delenv(environment.COMMIT, raising=False)
    monkeypatch.setenv("PATH", "")
    assert environment.describe()["commit"] == "unknown"
