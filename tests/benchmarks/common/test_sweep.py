"""``benchmarks.common.sweep``: what is measured is not missing, and other rows stay."""

from __future__ import annotations

import json
from operator import itemgetter

import pytest

from benchmarks.common.sweep import Sweep


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.json"


def test_what_has_a_row_is_not_missing(path):
    sweep = Sweep(path, itemgetter("run", "seed"))
    assert sweep.missing([("a", 0), ("a", 1)]) == [("a", 0), ("a", 1)]
    sweep.add({"run": "a", "seed": 0, "kept": 0.5})
    assert Sweep(path, itemgetter("run", "seed")).missing([("a", 1), ("a", 0), ("b", 0)]) == [("a", 1), ("b", 0)]


def test_rows_of_one_key_are_replaced_and_others_stay(path):
    sweep = Sweep(path, itemgetter("method"), kind="fidelity")
    for method in "ab":
        sweep.replace(method, [{"method": method, "rate": rate} for rate in (1, 2)])
    sweep.replace("a", [{"method": "a", "rate": 3}])
    assert [(row["method"], row["rate"]) for row in sweep.rows] == [("b", 1), ("b", 2), ("a", 3)]
    sweep.replace("b", [])
    assert [row["method"] for row in sweep.rows] == ["a"]
    assert json.loads(path.read_text())["kind"] == "fidelity"


def test_rows_of_a_call_beside_this_one_stay_and_are_in_order(path):
    first, second = (Sweep(path, itemgetter("seed"), order=lambda seed: -seed) for _ in range(2))
    first.add({"seed": 0})
    second.add({"seed": 2})
    first.add({"seed": 1})
    assert [row["seed"] for row in first.rows] == [2, 1, 0]
