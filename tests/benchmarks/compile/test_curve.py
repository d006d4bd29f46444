"""The curve benchmark resumes where it was killed, and reads off the first step that reaches a target."""

from __future__ import annotations

import pytest

from benchmarks.compile import curve


@pytest.fixture
def measure(embedded, tmp_path, monkeypatch):
    tiny = {"steps": 3, "batch": 4, "general_queries": 8, "self_study_questions": 4}
    monkeypatch.setattr(curve, "RUNS", {"fast": ("fast", tiny)})
    monkeypatch.setattr(curve, "GENERAL_QUERIES", 4)

    def run() -> dict:
        return curve.measure(*embedded, "fast", 0, 0, tmp_path / "checkpoint")

    return run


def scores(row: dict) -> list[dict]:
    return [{name: value for name, value in point.items() if name != "seconds"} for point in row["points"]]


def test_a_killed_run_goes_on_from_its_last_grade(measure, monkeypatch, tmp_path):
    whole = measure()
    grade, calls = curve.Exam.grade, iter(range(10))

    def killed(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return grade(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(curve.Exam, "grade", killed)
        with pytest.raises(KeyboardInterrupt):
            measure()
    resumed = measure()
    assert [point["step"] for point in whole["points"]] == [1, 2, 3]
    assert scores(resumed) == scores(whole)
    assert not (tmp_path / "checkpoint").exists()
    point = whole["points"][0]
    assert point["held_out_kl"] == pytest.approx((point["general_kl"] + point["reconstruction_kl"]) / 2, abs=1e-6)
    assert 0 <= point["questions"] <= 1


def test_first_step_that_reaches_a_target():
    points = [{"step": step, "held_out_kl": kl} for step, kl in ((10, 0.5), (20, 0.2), (30, 0.3))]
    assert curve.first_step(points, 0.2) == 20
    assert curve.first_step(points, 0.1) is None


def test_summary_and_plot_show_every_row(tmp_path):
    grade = dict.fromkeys(("held_out_kl", "general_kl", "reconstruction_kl", "about_kl", "questions"), 0.25)
    rows = [
        {"run": run, "document": 0, "seed": 0, "points": [{"step": 10, "seconds": 1.0} | grade]} for run in curve.RUNS
    ]
    table = curve.summary(rows)
    assert table.count("\n") == 2 + len(rows)
    assert "| fast | 0 | 0 | 10 | 0.2500 |" in table
    curve.plot(rows, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0
