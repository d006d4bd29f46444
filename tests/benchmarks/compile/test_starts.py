"""The benchmark of starts: what its rows and its table say."""

from __future__ import annotations

from benchmarks.compile import starts
from benchmarks.compile.starts import Chain, Exam, measure
from benchmarks.compile.starts_report import markdown, plot
from lcc.evaluation.stories import UNANSWERABLE, load_story


def test_a_chain_goes_on_from_the_one_before_and_pays_for_it(monkeypatch, tmp_path):
    steps = {"recipe": "fast", "general_queries": 4, "self_study_questions": 4, "patience": 0}
    monkeypatch.setattr(starts, "STEPS", steps)
    monkeypatch.setattr(starts, "PEOPLE", 2)
    chains = {
        "instant": Chain("attention_matching", {}),
        "instant > direct_kv": Chain("direct_kv", steps | {"steps": 1, "learning_rate": 1e-12}, "instant"),
    }
    monkeypatch.setattr(starts, "CHAINS", chains)
    rows = [{"document": "0"} | row for row in measure(Exam("0"), 8, ["instant > direct_kv"], tmp_path)]
    assert [row["chain"] for row in rows] == ["first_tokens", *chains]
    first, instant, on = rows
    assert instant["kl"] < first["kl"]
    assert abs(on["kl"] - instant["kl"]) < 1e-3  # the step moved nothing
    assert first["seconds"] == 0 < instant["seconds"] < on["seconds"]
    twice = [*rows, *({**row, "kl": row["kl"] + 2} for row in rows)]
    assert f"| 8 | first_tokens | 2 | 0.0 | {first['kl'] + 1:.3f} | {first['kl'] + 2:.3f} |" in markdown("name", twice)
    plot(twice, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_story_is_scored_by_the_answers_that_it_accepts():
    told = starts.Subject.of("lighthouse")
    answers = [one.answers[0] for one in load_story("lighthouse").examples if UNANSWERABLE not in one.task]
    assert told.score(answers) == 1
    assert told.score(["nothing"] * len(answers)) < 0.1
    assert len(told.questions) == len(answers) == 15
