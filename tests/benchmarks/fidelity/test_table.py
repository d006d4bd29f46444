"""``benchmarks.fidelity``, its search and its report, on methods that need no training."""

from __future__ import annotations

import json
import re
import time

import pytest

pytest.importorskip("matplotlib")

from benchmarks import report
from benchmarks.fidelity import __main__ as fidelity
from benchmarks.fidelity import by_training_status, options, paired
from benchmarks.fidelity import rows as figures
from benchmarks.fidelity import study as studies
from benchmarks.fidelity.methods import PEERS, kvpress_methods
from lcc.errors import DivergedError
from lcc.evaluation import Result
from lcc.pipeline.settings import make_settings

BOUNDS = ["full_text", "no_text"]


def test_rows(run):
    rows = run("--ratios", "2", "8")
    assert [(row["method"], row["ratio"]) for row in rows] == [
        ("full_text", 1.0),
        ("no_text", None),
        ("first_tokens", 2.0),
        ("first_tokens", 8.0),
        ("last_tokens", 2.0),
        ("last_tokens", 8.0),
    ]
    full, nothing, half, eighth, *_ = rows
    assert (full["qa_kept"], full["general_kept"], nothing["qa_kept"]) == (1.0, 1.0, 0.0)
    assert nothing["kv_bytes"] < eighth["kv_bytes"] < half["kv_bytes"] < full["kv_bytes"]
    assert half["qa_kept"] > eighth["qa_kept"]
    for row in rows:
        assert row["qa_kept"] == pytest.approx(row["qa_score"] / full["qa_score"])
        assert row["tasks"]["fiction easy"] == pytest.approx(row["task_scores"]["fiction easy"])
        low, high = row["interval"]
        assert low <= row["qa_kept"] <= high
        assert {"general_interval", "seconds", "device", "commit", "documents"} <= row.keys()


def test_every_method_is_in_the_smoke_table(run):
    every = options.pick(None)
    rows = run("--methods", *every, "--ratios", "8")
    assert [row["method"] for row in rows] == [*BOUNDS, *every]
    assert all(0 <= row["qa_kept"] <= 1 for row in rows)
    assert all(row["seconds"] > 0 and row["steps"] == options.SMOKE["steps"] for row in rows if row.get("steps"))


def test_a_second_run_asks_nothing_again(run, monkeypatch):
    rows = run()
    monkeypatch.setattr("benchmarks.fidelity.methods.kept_tokens.KeptTokens.answer", None)
    assert run() == rows


def test_a_second_call_adds_to_the_first(run, monkeypatch, tmp_path):
    """Each row says where it was made, and the file how long both took."""
    run("--methods", "first_tokens", "--ratios", "8")
    seconds = json.loads((tmp_path / "fidelity-smoke.json").read_text())["wall_seconds"]
    now = time.monotonic()
    monkeypatch.setattr(fidelity.time, "monotonic", lambda: now)
    monkeypatch.setattr(studies, "describe", lambda: {"commit": "another"})
    rows = run("--methods", "first_tokens", "last_tokens", "--ratios", "8")
    assert [row["commit"] == "another" for row in rows] == [False, False, False, True]
    assert json.loads((tmp_path / "fidelity-smoke.json").read_text())["wall_seconds"] == seconds


def test_several_processes_answer_the_same(run, tmp_path):
    rows = run("--ratios", "8")
    given = ["--ratios", "8", "--work", str(tmp_path / "other"), "--workers", "2"]
    told = {"kv_bytes", "qa_score", "general_score", "tasks", "interval", "documents"}
    assert [{name: row[name] for name in told} for row in run(*given)] == [
        {name: row[name] for name in told} for row in rows
    ]


def test_documents_are_asked_in_blocks():
    methods = {"first_tokens": {}, "temp_lora": {"learning_rate": 1.0}}
    units = fidelity.plan(3, methods, [8.0, 16.0], methods, block=2)
    assert [(unit.document, unit.method) for unit in units[:3]] == [(0, "bounds"), (1, "bounds"), (2, "bounds")]
    columns = [("first_tokens", 8.0), ("first_tokens", 16.0), ("temp_lora", 0.0)]
    expected = [(document, *column) for block in ((0, 1), (2,)) for column in columns for document in block]
    assert [(unit.document, unit.method, unit.ratio) for unit in units[3:]] == expected
    assert units[-1].options == {"learning_rate": 1.0}


def test_the_table_so_far_has_whole_documents_only(tmp_path):
    documents = studies.draw_documents(2, 0, [100], 2, seed=5)
    study = studies.Study(documents, make_settings(), tmp_path)
    units = fidelity.plan(2, ["first_tokens"], [8.0, 16.0], {}, block=1)
    written = []
    fidelity.run(study, units, 1, written.append)
    assert [sorted((unit.document, unit.ratio) for unit in found) for found in written] == [
        [(0, 0.0), (0, 8.0), (0, 16.0)],
        [(0, 0.0), (0, 8.0), (0, 16.0), (1, 0.0), (1, 8.0), (1, 16.0)],
    ]


def result(method, task, question, score, trained_on=False, context="c"):
    return Result(
        key=f"{context} {task} {question}", method=method, task=task, general=task == "general", metric="exact_match",
        context=context, history=(), question=question, answers=("a",), prediction="", scores={"exact_match": score},
        trained_on=trained_on, kv_bytes=1, seconds=1.0,
    )  # fmt: skip


def test_what_the_full_text_fails_is_reported_and_not_in_the_headline():
    full = {"fiction easy": [1, 1, 1, 0], "fiction hard": [1, 0, 0, 0], "needle": [1, 1, 1, 1], "general": [1, 1, 1, 1]}
    mine = {"fiction easy": [1, 0, 1, 0], "fiction hard": [0, 0, 0, 0], "needle": [1, 0, 0, 0], "general": [1, 1, 1, 0]}
    results = [
        result(method, task, f"q{number}?", score)
        for method, scores in (("full_text", full), ("lcc", mine))
        for task, several in scores.items()
        for number, score in enumerate(several)
    ]
    found = figures.row(results, "lcc", 16.0)
    assert found["headline"] == ["fiction easy"]
    assert (found["qa_kept"], found["qa_score"], found["questions"]) == (pytest.approx(2 / 3), 0.5, 4)
    assert (found["general_kept"], found["general_questions"]) == (0.75, 4)
    assert found["tasks"] == {"fiction easy": pytest.approx(2 / 3), "fiction hard": 0, "needle": 0.25}


def test_other_wordings_are_those_that_the_model_never_asks_in():
    asked = ["Where does Mara live?", "In which town does Mara live?"]
    unasked = ["What is the home town of Mara?", "What is the home town of her?", "What is the home town of Hugo?"]
    scores = dict.fromkeys(asked, 0) | dict.fromkeys(unasked, 1) | {unasked[1]: 0}
    results = [
        result(method, "fiction easy", question, score if method == "lcc" else 1, question == unasked[2])
        for method in ("full_text", "lcc")
        for question, score in scores.items()
    ]
    found = figures.row(results, "lcc", 16.0)
    assert (found["other_wordings"], found["other_wordings_count"], found["other_wordings_asked"]) == (0.5, 2, 1)
    low, high = found["other_wordings_interval"]
    assert low <= 0.5 <= high


def test_the_table_tells_how_far_lcc_is_ahead(run, monkeypatch, tmp_path, capsys):
    """And so does the script that compares any two columns."""
    monkeypatch.setattr(fidelity, "OURS", "last_tokens")
    *_, other, ours = run("--ratios", "8")
    assert other["lcc_ahead"] == pytest.approx(ours["qa_score"] - other["qa_score"])
    low, high = other["lcc_ahead_interval"]
    assert low <= other["lcc_ahead"] <= high
    assert low < high
    assert "lcc_ahead" not in ours
    paired.main([str(tmp_path / "work"), "last_tokens-8", "first_tokens-8"])
    questions, general = capsys.readouterr().out.splitlines()[-2:]
    span = f"{100 * other['lcc_ahead']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    assert questions == f"questions: {span} of {other['questions']}"
    assert general.endswith(f"of {other['general_questions']}")


def test_differences_are_of_the_same_questions():
    """Where only the second question is common, whatever the order; and paired, so that equal answers have no width."""
    first = [result("a", "fiction easy", name, score) for name, score in (("x?", 1), ("y?", 0))]
    second = [result("b", "fiction easy", name, score) for name, score in (("y?", 1), ("z?", 1))]
    assert figures.difference(first, second) == (-1.0, (-1.0, -1.0), 1)
    unsure = [result("a", "fiction easy", f"{n}?", n % 2) for n in range(8)]
    assert figures.difference(unsure, unsure[::-1]) == (0.0, (0.0, 0.0), 8)
    assert figures.difference(first[:1], second) is None


def test_columns_that_are_not_there_or_not_one_are_refused(run, tmp_path, capsys):
    run("--ratios", "8")
    work = tmp_path / "work"
    (folder,) = work.glob("answers/*/first_tokens-8-*")
    (folder.with_name("first_tokens-8-other")).symlink_to(folder)
    for column, cause in (("lcc-8", "no answers of lcc-8"), ("first_tokens-8", f"such as {folder.name}")):
        with pytest.raises(SystemExit):
            paired.main([str(work), "last_tokens-8", column])
        assert cause in capsys.readouterr().err
    paired.main([str(work), "last_tokens-8", folder.name])


def test_what_compile_asked_is_told_from_what_it_did_not(run, tmp_path, capsys):
    rows = run("--methods", "lcc", "--ratios", "8")
    work = tmp_path / "work"
    by_training_status.main([str(work), "lcc-8"])
    *_, total = capsys.readouterr().out.splitlines()
    trained, held_out, never = map(int, re.findall(r"of (\d+)", total))
    assert min(trained, never) > 0
    full = rows[0]
    assert trained + held_out + never == full["questions"] == full["qa_score"] * full["questions"]
    with pytest.raises(SystemExit):
        by_training_status.main([str(tmp_path), "lcc-8"])
    assert "has no answers of bounds-0" in capsys.readouterr().err
    for path in work.glob("surrogates/*"):
        path.unlink()
    with pytest.raises(SystemExit):
        by_training_status.main([str(work), "lcc-8"])
    assert "no questions that a model asked itself" in capsys.readouterr().err


def test_a_method_that_diverges_is_left_out(run, monkeypatch, capsys):
    def diverge(*_):
        raise DivergedError("the loss became nan")

    monkeypatch.setattr("benchmarks.fidelity.methods.kept_tokens.First.kept", diverge)
    assert [row["method"] for row in run("--ratios", "8")] == [*BOUNDS, "last_tokens"]
    assert "first_tokens diverged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (["--methods", "magic"], "magic: no such method"),
        (["--seed", str(options.SEARCH_SEED)], "searched on"),
        (["--set", "batch=0"], "batch is 0"),
        (["--set", "magic=1"], "unknown setting 'magic'"),
    ],
)
def test_unusable_options_are_refused(run, given, cause, capsys):
    with pytest.raises(SystemExit):
        run(*given)
    assert cause in capsys.readouterr().err


def test_settings_are_those_of_every_trained_method(tmp_path):
    given = ["--set", "loss=mse", "batch=3", "--work", str(tmp_path), "--out", str(tmp_path / "rows.json")]
    arguments = options.parser("", 1).parse_args(given)
    settings = options.make_study(arguments, 0, 0).settings
    training = settings.training
    assert (training.loss, training.batch, training.steps) == ("mse", 3, arguments.steps)


def test_methods_that_cannot_run_are_named(monkeypatch, capsys):
    monkeypatch.setattr(kvpress_methods, "find_spec", lambda name: None)
    assert options.pick(None) == [name for name in PEERS if name not in kvpress_methods.PRESSES]
    assert "not run: kvzip (kvpress is not installed" in capsys.readouterr().out


def test_report(run, tmp_path):
    run("--ratios", "2", "8")
    out = tmp_path / "report"
    report.main([str(tmp_path / "fidelity-smoke.json"), "-o", str(out)])
    table = (out / "report.md").read_text()
    assert table.startswith("## Fidelity (fidelity-smoke)")
    first = table[: table.index("Kept, task by task")]
    lines = [line for line in first.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[1] for line in lines[2:]].count("first_tokens") == 2
    assert "- `last_tokens`: truncation" in table
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_fidelity_run_is_reported_alone(run, tmp_path, capsys):
    run()
    path = str(tmp_path / "fidelity-smoke.json")
    with pytest.raises(SystemExit):
        report.main([path, path])
    assert "is reported alone" in capsys.readouterr().err
