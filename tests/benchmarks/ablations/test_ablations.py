"""``benchmarks.ablations`` and its report, on one short document and four steps."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import report
from benchmarks.ablations import __main__ as ablations
from benchmarks.ablations import training
from benchmarks.ablations.points import ABLATED, ABLATIONS, SMOKE, Plan
from benchmarks.ablations.report import Finding, verdict
from benchmarks.ablations.training import Ablated, data_of, prepare, share
from benchmarks.common.models import load
from lcc.errors import DivergedError
from lcc.evaluation.suites import general_queries
from lcc.modeling.fingerprint import fingerprint


def plan_in(folder):
    return Plan(folder, documents=1, words=120, general=4, most_queries=40, shared=SMOKE)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def run(work, tmp_path):
    """Runs ablations into a results file of the test's own, all tests sharing trainings, and gives the rows."""
    out = tmp_path / "ablations-smoke.json"

    def go(*only, **more):
        given = ["--smoke", "--work", str(work), "--out", str(out), "--only", *only]
        ablations.main(given + [text for name, value in more.items() for text in (f"--{name}", str(value))])
        return json.loads(out.read_text())["rows"]

    return go


def test_every_ablation_has_its_base_and_no_value_twice(tmp_path):
    points = plan_in(tmp_path).points(list(ABLATIONS))
    places = [(point.streams, point.ablation, point.value) for point in points]
    assert len(set(places)) == len(places)
    bases = [(point.streams, point.ablation) for point in points if point.base]
    assert bases == [(streams, ablation) for streams, names in ABLATED.items() for ablation in names]


def test_a_streams_weight_is_its_number_of_samples(tmp_path):
    points = {(p.streams, p.ablation, p.value): p.settings for p in plan_in(tmp_path).points(list(ABLATIONS))}
    none = points["two streams", "general", 0]
    assert points["two streams", "general", 8000].training.general_weight == 4.0
    assert none.data.general_queries == none.training.general_weight == 0
    assert points["three streams", "reconstruction", 500].training.reconstruction_weight == 0.25
    assert points["two streams", "general", 8000] == points["two streams, 8,000 queries", "reconstruction", 2000]


def test_no_query_is_asked_in_the_end(tmp_path):
    plan = Plan(tmp_path, documents=1, words=120)
    assert len(set(plan.queries)) == 8000
    assert not {query.question for query in general_queries(2, plan.general)} & set(plan.queries)
    assert {query.question for query in general_queries(2, plan.general)} == {
        example.question for example in plan.examples if example.general
    }


def test_trainings_of_any_lora_find_the_same_samples(run, work):
    run("rank", streams="three streams", values=2)
    assert len(list((work / "surrogates").iterdir())) == 1


def test_a_training_takes_its_share_of_the_samples(work):
    plan = plan_in(work)
    whole = data_of(plan, plan.texts[0])
    few, two = (plan.settings(streams, {"general_queries": 5}) for streams in ("three streams", "two streams"))
    assert [sample.stream for sample in share(whole, few).train].count("general") == 5
    assert share(whole, few).self_questions == whole.self_questions != frozenset()
    assert {sample.stream for sample in share(whole, two).train} == {"general"}


def test_a_documents_samples_are_made_once(tmp_path, syntheses):
    plan = plan_in(tmp_path)
    prepare(plan, plan.texts[0])
    prepare(plan, plan.texts[0])
    assert len(syntheses) == len(list((tmp_path / "surrogates").iterdir())) == 1


def test_coupled_reading_keeps_the_lora_and_the_model(work):
    plan = plan_in(work)
    settings = plan.settings("three streams", {"coupled": True})
    model, tokenizer = load()
    before = fingerprint(model, tokenizer)
    states = {}
    for lora_on in (False, True):
        with Ablated(plan, settings, lora_on).reading(plan.texts[0]) as (reader, seconds):
            states[lora_on] = reader.states(["Who is it?"], [(5, 6)])
            assert seconds > 0
    assert not torch.allclose(states[False], states[True], atol=1e-3)
    assert fingerprint(model, tokenizer) == before


def test_rows(run):
    rows = run("coupled")
    values = [
        (streams, value) for streams in ("three streams", "two streams") for value in ("off", "on", "on, dropped")
    ]
    assert [(row["streams"], row["value"]) for row in rows] == values
    three = {row["value"]: row for row in rows if row["streams"] == "three streams"}
    assert three["off"]["base"]
    assert three["off"]["qa_difference"] == three["off"]["general_difference"] == [0.0, 0.0]
    assert three["on"]["repeats"] != three["on, dropped"]["repeats"]
    assert three["on"]["settings"] == three["on, dropped"]["settings"]
    for row in rows:
        low, high = row["repeats_interval"]
        assert low <= row["repeats"] <= high
        assert row["repeats_bounds"]["no_text"] < row["repeats_bounds"]["full_text"]
        assert {"qa_kept", "general_kept", "seconds", "device", "commit"} <= row.keys()


def test_a_second_run_trains_nothing_again(run, monkeypatch):
    rows = run("coupled")
    monkeypatch.setattr(training, "Trainer", None)
    assert run("coupled") == rows
    assert run("coupled", workers=2) == rows


def test_rows_of_other_ablations_stay(run):
    before = run("coupled")
    rows = run("loss")
    assert [row["ablation"] for row in rows] == (["loss"] * 2 + ["coupled"] * 3) * 2
    assert [row for row in rows if row["ablation"] == "coupled"] == before
    assert run("loss", values="mse") == rows


def test_streams_that_are_not_asked_for_stay(run, monkeypatch):
    both = run("loss")
    monkeypatch.setattr(ablations, "describe", lambda: {"commit": "another"})
    rows = run("loss", streams="two streams")
    assert [row["commit"] == "another" for row in rows] == [False, False, True, True]
    assert [{**row, "commit": None} for row in rows[:2]] == [{**row, "commit": None} for row in both[:2]]


def test_a_training_that_diverges_is_left_out(run, monkeypatch, capsys):
    train = training.Ablated._train

    def diverge(self, *given):
        if self.settings.ratio == 2:
            raise DivergedError("the loss became nan")
        return train(self, *given)

    monkeypatch.setattr(training.Ablated, "_train", diverge)
    monkeypatch.setitem(ABLATIONS, "ratio", {value: ABLATIONS["ratio"][value] for value in (2, 16)})
    assert [row["value"] for row in run("ratio")] == [16]
    assert "diverged: ratio 2" in capsys.readouterr().out


def measured(kept, difference=(0.0, 0.0), **more):
    """A row of 40 questions whose intervals are 4 points either way."""
    return {
        "qa_kept": kept, "interval": [kept - 0.04, kept + 0.04], "qa_difference": list(difference), "questions": 40,
        "repeats_bounds": {"full_text": 0.98, "no_text": 0.4}, "documents": 4, "general_questions": 80, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("claim", "base", "kept", "difference", "expected"),
    [
        ("worse", 0.9, 0.5, (-0.5, -0.3), "confirmed"),
        ("worse", 0.9, 0.9, (-0.04, 0.02), "refuted"),
        ("worse", 0.9, 0.8, (-0.2, 0.02), "open"),
        ("worse", 0.04, 0.0, (-0.08, 0.0), "open: the base keeps next to nothing"),
        # By the base itself, not by what its interval reaches.
        ("worse", 0.08, 0.0, (-0.12, -0.02), "open: the base keeps next to nothing"),
        ("better", 0.5, 0.9, (0.3, 0.5), "confirmed"),
        ("better", 0.5, 0.5, (-0.1, 0.04), "refuted"),
        ("better", 1.0, 1.0, (0.0, 0.0), "open: the base has next to nothing to gain"),
        ("better", 0.97, 0.99, (-0.01, 0.04), "open: the base has next to nothing to gain"),
        ("better", 0.97, 0.9, (-0.1, -0.02), "refuted"),
        ("same", 0.9, 0.9, (-0.04, 0.04), "confirmed"),
        ("same", 0.9, 0.5, (-0.5, -0.3), "refuted"),
        ("same", 0.9, 0.85, (-0.1, 0.02), "open"),
        # Forty questions that did not change leave room for 3 / 40.
        ("same", 0.9, 0.9, (0.0, 0.0), "open"),
        ("near zero", 0.9, 0.02, (-0.9, -0.8), "confirmed"),
        ("near zero", 0.9, 0.5, (-0.5, -0.3), "refuted"),
        ("near zero", 0.9, 0.12, (-0.8, -0.7), "open"),
    ],
)
def test_verdicts(claim, base, kept, difference, expected):
    finding = Finding("Figure 0", "", "ratio", 2, claim)
    assert verdict(finding, measured(kept, difference), measured(base)) == expected


def test_report(tmp_path):
    rows = [
        measured(
            kept, difference, streams=streams, ablation=ablation, value=value, base=base, repeats=0.9,
            repeats_interval=[0.8, 1.0], general_kept=1.0, general_interval=None, general_difference=[0.0, 0.0],
            seconds=9.0, method="lcc", ratio=16.0, kv_bytes=1, **({"documents": 12} if ablation == "loss" else {}),
        )
        for streams, ablation, value, base, kept, difference in (
            ("three streams", "general", 0, False, 0.02, (-0.9, -0.8)),
            ("three streams", "general", 2000, True, 0.9, (0.0, 0.0)),
            ("two streams", "general", 2000, True, 0.5, (0.0, 0.0)),
            ("three streams", "loss", "kl", True, 0.9, (0.0, 0.0)),
            ("three streams", "loss", "mse", False, 0.8, (-0.2, -0.1)),
        )
    ]  # fmt: skip
    file = tmp_path / "ablations.json"
    file.write_text(json.dumps({"rows": rows, "kind": "ablations"}))
    report.main([str(file), "-o", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith("## Ablations (ablations)")
    assert "| Figure 5: MSE over logits is worse than KL | three streams |" in text
    assert "| 90.0% (86.0%-94.0%) | 80.0% (76.0%-84.0%) | -20.0% to -10.0% | confirmed |" in text
    # Of "two streams" there is a base alone.
    assert text.count("Figure 2: without general queries, hardly an answer") == 1
    assert "### loss" in text
    # A run that measured more documents has a line of its own.
    assert text.count("- general (three streams), general (two streams): 4 documents, 40 questions") == 1
    assert text.count("- loss (three streams): 12 documents, 40 questions") == 1
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        report.main([str(file), str(file)])
