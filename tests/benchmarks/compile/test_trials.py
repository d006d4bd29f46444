"""The screening: windows are the whole sample's tokens, a trial changes what it says, done rows are skipped."""

from __future__ import annotations

import json
import random

import pytest
import torch

from benchmarks.compile import curve, trials
from benchmarks.compile.trials import TRIALS, TrialTrainer
from lcc.compilers.lora import LoraMemory
from lcc.modeling.lora import lora_model
from lcc.pipeline.settings import make_settings
from lcc.training.student import student_hidden

TINY = {"steps": 3, "batch": 4, "general_queries": 8, "self_study_questions": 4, "held_out": 0.5, "patience": 0}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(curve, "GENERAL_QUERIES", 4)
    monkeypatch.setattr(trials, "make_settings", lambda **_: make_settings(**TINY))


@pytest.fixture
def trainer_of(embedded, small):
    """Makes a trial's trainer, untrained."""
    model, tokenizer = embedded
    settings = make_settings("fast", **TINY)
    context, data, _ = trials.prepare(model, tokenizer, 0, settings)
    lora = settings.compiler
    with lora_model(model, lora.rank, lora.alpha, lora.targets) as layers:

        def make(name: str) -> TrialTrainer:
            torch.manual_seed(0)
            return TrialTrainer(LoraMemory(model, context, layers, lora), data, settings, TRIALS[name])

        yield make


def test_a_window_is_predicted_as_in_the_whole_sample(trainer_of):
    trainer = trainer_of("default")
    [whole] = trainer.data.reconstruction
    part = trials.window(whole, 1 / 4, random.Random(1))
    start = len(part.query_ids) - len(whole.query_ids)
    rows = slice(start, start + round(len(whole.response_ids) / 4))
    assert start
    assert part.response_ids == whole.response_ids[rows]
    assert torch.equal(part.teacher_hidden, whole.teacher_hidden[rows])
    with torch.no_grad():
        hidden = [
            student_hidden(trainer.memory, [sample], trainer.training.keep_prefix, trainer.execution)
            for sample in (whole, part)
        ]
        torch.testing.assert_close(hidden[1], hidden[0][rows], rtol=1e-4, atol=1e-4)


def test_a_trial_changes_weights_rates_and_the_average(trainer_of):
    grows = trainer_of("repeat-grows")
    weights = []
    for _ in range(3):
        grows.advance()
        weights.append(grows.training.reconstruction_weight)
    assert weights == pytest.approx([0, 1 / 6, 1 / 3])
    warm = trainer_of("warm-up")
    warm.advance()
    assert [group["lr"] for group in warm.groups] == pytest.approx([0.1 * rate for rate in warm.rates])
    average = trainer_of("average")
    start = [parameter.detach().clone() for parameter in average.parameters]
    average.advance()
    for parameter, new, old in zip(average.parameters, average.trained, start, strict=True):
        torch.testing.assert_close(parameter.detach(), 0.9 * new + 0.1 * old)
    assert not torch.equal(average.trained[0], start[0])


def test_rows_are_measured_once(small, tmp_path, monkeypatch, capsys):
    given = [
        "--trials",
        "default",
        "window-1/4",
        "--documents",
        "0",
        "--steps",
        "3",
        "--out",
        str(tmp_path / "rows.json"),
    ]
    trials.main(given)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["trial"], len(row["points"])) for row in rows] == [("default", 3), ("window-1/4", 3)]
    assert rows[0]["points"][-1]["held_out_kl"] != rows[1]["points"][-1]["held_out_kl"]
    monkeypatch.setattr(trials, "prepare", lambda *_: pytest.fail("measured again"))
    trials.main(given)
    assert capsys.readouterr().out.count("| window-1/4 | 0 | 0 | 3 |") == 2


def test_an_early_stop_keeps_the_best_seen():
    points = [{"step": step, "watched_kl": kl} for step, kl in enumerate([5, 3, 4, 2, 3, 3, 1])]
    assert trials.stopped(points, 1) == (2, points[1])
    assert trials.stopped(points, 2) == (5, points[3])
    assert trials.stopped(points, 4) == (6, points[6])
