"""The search of options: it climbs, chooses, and has documents of its own."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks.fidelity import options, search
from benchmarks.fidelity import study as studies
from benchmarks.fidelity.methods import PEERS
from benchmarks.fidelity.methods.workbench import RATES


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-2, [3e-3, 5e-3, 1e-2, 2e-2, 3e-2]),
        (2e-2, [3e-3, 5e-3, 1e-2, 2e-2, 3e-2]),
        (1e-1, [3e-3, 1e-2, 3e-2, 5e-2, 0.1, 0.2, 0.3]),
        (3e-4, [3e-4, 5e-4, 1e-3, 3e-3, 1e-2, 3e-2]),
    ],
)
def test_the_search_climbs_until_the_best_rate_is_at_no_edge(best, tried):
    def attempt(rates):
        score = {rate: -abs(RATES.index(rate) - RATES.index(best)) for rate in rates}
        return [[{"rate": rate, "diverged": False, "qa_kept": score[rate], "general_kept": 0}] for rate in rates]

    assert [found["rate"] for [found] in search.climb(attempt, 1e-2)] == tried


def test_search_chooses_the_best_options(tmp_path, run, monkeypatch):
    variants = ({"last": False}, {"last": True})
    monkeypatch.setitem(PEERS, "first_tokens", fidelity_peer(variants))
    out = tmp_path / "chosen.json"
    given = ["--smoke", "--methods", "first_tokens", "--work", str(tmp_path / "search"), "--out", str(out)]
    search.main([*given, "--ratios", "4", "2"])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["options"], row["ratio"]) for row in rows] == [(it, ratio) for it in variants for ratio in (4, 2)]
    kept = [sum(row["qa_kept"] + row["general_kept"] for row in rows if row["options"] == it) for it in variants]
    assert kept[0] != kept[1]
    assert [row["chosen"] for row in rows] == [total == max(kept) for total in kept for _ in range(2)]
    chosen = next(row["options"] for row in rows if row["chosen"])
    assert options.load_chosen(out) == {"first_tokens": chosen}
    table = {row["method"]: row for row in run("--ratios", "4")}
    assert (table["first_tokens"]["options"], table["first_tokens"]["searched"]) == (chosen, True)


def fidelity_peer(variants):
    """A peer whose option says which end of the text it keeps."""
    from benchmarks.fidelity.methods.kept_tokens import First, Last
    from benchmarks.fidelity.methods.workbench import Peer

    return Peer(lambda name, bench, options: (Last if options["last"] else First)(name, bench, options), "", variants)


def test_search_and_test_documents_differ():
    test, search = (
        {examples[0].context for examples in studies.draw_documents(3, 1, [300], 1, seed)}
        for seed in (options.TEST_SEED, options.SEARCH_SEED)
    )
    assert len(test) == 5
    assert not test & search
