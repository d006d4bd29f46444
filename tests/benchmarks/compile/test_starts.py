"""The benchmark of starts: what its rows and its table say."""

from __future__ import annotations

from benchmarks.compile import starts
from benchmarks.compile.starts import Chain, measure, summary


def test_a_chain_goes_on_from_the_one_before_and_pays_for_it(monkeypatch, tmp_path):
    steps = {"recipe": "fast", "general_queries": 4, "self_study_questions": 4, "patience": 0}
    monkeypatch.setattr(starts, "STEPS", steps)
    monkeypatch.setattr(starts, "PEOPLE", 2)
    chains = {
        "instant": Chain("attention_matching", {}),
        "instant > direct_kv": Chain("direct_kv", steps | {"steps": 1, "learning_rate": 1e-12}, "instant"),
    }
    monkeypatch.setattr(starts, "CHAINS", chains)
    rows = measure(0, 8, tmp_path)
    assert [row["chain"] for row in rows] == ["first_tokens", *chains]
    first, instant, on = rows
    assert instant["kl"] < first["kl"]
    assert abs(on["kl"] - instant["kl"]) < 1e-3  # the step moved nothing
    assert first["seconds"] == 0 < instant["seconds"] < on["seconds"]
    table = summary([*rows, *({**row, "kl": row["kl"] + 2} for row in rows)])
    assert f"| 8 | first_tokens | 2 | 0.0 | {first['kl'] + 1:.3f} |" in table
