"""The benchmark of forms of memory: what is compared is alike but for its form."""

from __future__ import annotations

import json
import sys

from benchmarks.compile import matching_forms, starts
from benchmarks.compile.matching_forms import Form
from benchmarks.fidelity.methods import ragged_matching


def test_forms_have_a_memorys_bytes_but_for_the_longest_heads(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(starts, "PEOPLE", 2)
    monkeypatch.setattr(matching_forms, "TOKENS", 256)
    monkeypatch.setattr(ragged_matching, "PROBED", 4)
    monkeypatch.setattr(ragged_matching, "SHARES", (0.5, 1, 2))
    forms = [Form("folded"), *(Form("biased", budgets) for budgets in ("uniform", "by_head", "of_model", "longest"))]
    monkeypatch.setattr(sys, "argv", ["", "--documents", "0", "--ratios", "16", "--out", str(tmp_path / "rows.json")])
    monkeypatch.setattr(matching_forms, "FORMS", forms[:2])
    matching_forms.main()
    monkeypatch.setattr(matching_forms, "FORMS", forms)
    matching_forms.main()  # measures what is missing
    rows = {row["form"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert list(rows) == [form.name for form in forms]
    folded, uniform, by_head, of_model, longest = rows.values()
    assert folded["bytes"] == folded["plain_bytes"] == uniform["plain_bytes"] < uniform["bytes"]
    assert max(by_head["bytes"], of_model["bytes"]) <= uniform["bytes"] < longest["bytes"]
    assert by_head["plain_bytes"] == longest["plain_bytes"]
    assert longest["kl"] < by_head["kl"] < uniform["kl"]
    shown = capsys.readouterr().out
    assert shown.count(f"0 16 {forms[0].name}: KL") == 1
    assert f"| 16 | {forms[0].name} | 1 | {folded['kl']:.3f} |" in shown
