"""``benchmarks.fidelity``, its search and its report, on methods that need no training."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks import fidelity, fidelity_search, report
from benchmarks.fidelity_peers import PEERS, presses

QUICK = ["--smoke", "--methods", "first_tokens", "last_tokens"]


@pytest.fixture
def run(tmp_path):
    """Runs the smoke table into one folder and gives its rows."""

    def go(*more):
        out = tmp_path / "fidelity-smoke.json"
        given = [
            *QUICK,
            "--work",
            str(tmp_path / "work"),
            "--out",
            str(out),
            "--options",
            str(tmp_path / "chosen.json"),
        ]
        fidelity.main([*given, *more])
        return json.loads(out.read_text())["rows"]

    return go


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
        low, high = row["interval"]
        assert low <= row["qa_kept"] <= high
        assert {"general_interval", "seconds", "device", "commit", "documents"} <= row.keys()


def test_a_second_run_asks_nothing_again(run, monkeypatch):
    rows = run()
    monkeypatch.setattr("benchmarks.fidelity_peers.kept_tokens.KeptTokens.answer", None)
    assert run() == rows


def test_a_method_that_diverges_is_left_out(run, monkeypatch, capsys):
    def diverge(*_):
        raise fidelity.DivergedError("the loss became nan")

    monkeypatch.setattr("benchmarks.fidelity_peers.kept_tokens.First.kept", diverge)
    assert [row["method"] for row in run()] == ["full_text", "no_text", "last_tokens"]
    assert "first_tokens diverged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (["--methods", "magic"], "magic: no such method"),
        (["--methods", "attention_matching"], "kvpress 0.5.5 has no press of that name"),
        (["--seed", str(fidelity.SEARCH_SEED)], "searched on"),
    ],
)
def test_unusable_options_are_refused(run, given, cause, capsys):
    with pytest.raises(SystemExit):
        run(*given)
    assert cause in capsys.readouterr().err


def test_methods_that_cannot_run_are_named(monkeypatch, capsys):
    monkeypatch.setattr(presses, "find_spec", lambda name: None)
    assert fidelity.pick(None) == [name for name in PEERS if name not in presses.PRESSES]
    assert "not run: kvzip (kvpress is not installed" in capsys.readouterr().out


def test_search_chooses_the_best_options(tmp_path, run, monkeypatch):
    grid = ({"last": False}, {"last": True})
    monkeypatch.setitem(PEERS, "first_tokens", fidelity_peer(grid))
    out = tmp_path / "chosen.json"
    given = ["--smoke", "--methods", "first_tokens", "--work", str(tmp_path / "search"), "--out", str(out)]
    fidelity_search.main([*given, "--ratio", "2"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["options"] for row in rows] == list(grid)
    kept = [row["qa_kept"] + row["general_kept"] for row in rows]
    assert kept[0] != kept[1]
    assert [row["chosen"] for row in rows] == [total == max(kept) for total in kept]
    chosen = next(row["options"] for row in rows if row["chosen"])
    assert fidelity.load_chosen(out) == {"first_tokens": chosen}
    table = {row["method"]: row for row in run("--ratios", "2")}
    assert (table["first_tokens"]["options"], table["first_tokens"]["searched"]) == (chosen, True)


def fidelity_peer(grid):
    """A peer whose option says which end of the text it keeps."""
    from benchmarks.fidelity_peers.kept_tokens import First, Last
    from benchmarks.fidelity_peers.workbench import Peer

    return Peer(lambda name, bench, options: (Last if options["last"] else First)(name, bench, options), "", grid)


def test_search_and_test_documents_differ():
    test, search = (
        {example.context for example in fidelity.draw_examples(3, [300], 1, seed)}
        for seed in (fidelity.TEST_SEED, fidelity.SEARCH_SEED)
    )
    assert not test & search


def test_report(run, tmp_path):
    run("--ratios", "2", "8")
    out = tmp_path / "report"
    report.main([str(tmp_path / "fidelity-smoke.json"), "-o", str(out)])
    table = (out / "report.md").read_text()
    assert table.startswith("## Fidelity (fidelity-smoke)")
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[1] for line in lines[2:]].count("first_tokens") == 2
    assert "- `last_tokens`: truncation" in table
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_fidelity_run_is_reported_alone(run, tmp_path, capsys):
    run()
    path = str(tmp_path / "fidelity-smoke.json")
    with pytest.raises(SystemExit):
        report.main([path, path])
    assert "is reported alone" in capsys.readouterr().err
