"""The benchmark of adapters: each is read both ways, and the table is of what the rows say."""

from __future__ import annotations

from benchmarks.bank import adapters
from benchmarks.bank.adapters import READ, TEXTS, markdown, measure
from benchmarks.compile import starts
from benchmarks.compile.starts import Exam


def test_each_adapter_is_read_both_ways(monkeypatch, tmp_path):
    monkeypatch.setattr(starts, "PEOPLE", 2)
    monkeypatch.setattr(adapters, "GENERAL_QUERIES", 4)
    monkeypatch.setattr(adapters, "COMPILED", {name: adapters.COMPILED[name] for name in ("sharing", "not sharing")})
    monkeypatch.setattr(adapters, "STEPS", adapters.STEPS | {"general_queries": 8, "self_study_questions": 0})
    rows = list(measure(Exam("0"), tmp_path, {"steps": 3, "learning_rate": 0.03, "rank": 4}))
    names = [name for key in ("sharing", "not sharing") for name in READ[key]]
    assert [row["read"] for row in rows] == [*TEXTS, *names]
    full, nothing, *read = rows
    assert full["score"] == 1 > nothing["score"]
    assert full["kl"] < 1e-6 < min(row["kl"] for row in read)
    # One memory is read two ways, which differ; the other one is another memory.
    assert len({row["kl"] for row in read}) == 4
    assert read[0]["seconds"] == read[1]["seconds"] > 0
    assert read[0]["curve"] == read[1]["curve"] != read[2]["curve"] == read[3]["curve"]
    other = [row | {"kl": row["kl"] + 2} for row in rows]
    assert f"| full text | 2 | 100.0% | {full['general']:.1%} | {full['kl'] + 1:.3f} |" in markdown([*rows, *other])
