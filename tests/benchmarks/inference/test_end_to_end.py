"""The end-to-end benchmark on a small case: its rows, its ratios and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks.inference.end_to_end import main

READERS = ["text, copies", "text, shared", "memory, copies", "memory, shared"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["end_to_end", *arguments])
    main()


def test_rows_and_ratios(monkeypatch, capsys, tmp_path):
    small = ["--context", "160", "--questions", "2", "6", "--new-tokens", "2", "--rounds", "1"]
    run(monkeypatch, *small, "--json", "--out", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "rows.png"))
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "rows.json").read_text()) == report
    assert (tmp_path / "rows.png").stat().st_size > 1000
    assert [row["reader"] for row in report["rows"]] == READERS * 2
    assert [row["questions"] for row in report["rows"]] == [2] * 4 + [6] * 4
    rows = {row["reader"]: row for row in report["rows"][4:]}
    for row in rows.values():
        assert (row["context_tokens"], row["buffer_tokens"], row["model"]) == (160, 10, "embedded")
        assert row["first_token_seconds"] > 0
        assert row["tokens_per_second"] == pytest.approx(12 / row["seconds"], rel=0.01)
        times = row["kv_bytes"] / rows["memory, shared"]["kv_bytes"]
        assert row["times_memory"]["kv_bytes"] == pytest.approx(times, abs=0.01)
    # 160 tokens and the prefix, six times, in 4 layers of 2 KV heads of 64 in float32, K and V.
    assert rows["text, copies"]["kv_bytes"] > 6 * 160 * 4 * 2 * 64 * 4 * 2
    assert rows["text, shared"]["kv_bytes"] < rows["text, copies"]["kv_bytes"] / 2
    assert rows["memory, shared"]["kv_bytes"] < rows["text, shared"]["kv_bytes"]


def test_the_full_sized_model_wants_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        run(monkeypatch, "--model", "llama-8b-shape")
    with pytest.raises(SystemExit, match="multiple of 512"):
        run(monkeypatch, "--model", "llama-8b-shape", "--layers", "1", "--hidden", "700")
