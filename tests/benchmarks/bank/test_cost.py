"""What a bank costs: operations as torch counts them, and every way to the same answer."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bank import cost
from benchmarks.bank.flops import answer_flops, pass_flops
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SharedCache
from tests.support.tiny_models import tiny_model


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_operations_as_torch_counts_them(family):
    """Plain matrix products attend here, to pairs that causality hides too."""
    model, past, new = tiny_model(family, attn_implementation="eager"), 20, 6
    cache = SharedCache(prefill(model, range(30, 30 + past)))
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(50, 50 + new)[None], past_key_values=cache, logits_to_keep=1)
    hidden = new * (new - 1) // 2
    width = model.config.num_attention_heads * model.model.layers[0].self_attn.head_dim
    later = model.config.num_hidden_layers * 4 * hidden * width
    assert counter.get_total_flops() == pass_flops(model, [past], new) + later


def test_rows_and_steps_add_up():
    model = tiny_model("llama")
    assert pass_flops(model, [20, 3], 6) == pass_flops(model, [20], 6) + pass_flops(model, [3], 6)
    assert answer_flops(model, 9, 3) == sum(pass_flops(model, [9 + step], 1) for step in range(3))
    assert answer_flops(model, 9, 0) == 0


def test_the_command_measures_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost, "CANDIDATES", (1, 2))
    out = tmp_path / "cost.json"

    def run(*more):
        arguments = ["cost", "--out", str(out), "--words", "60", "--rounds", "1", "--runs", "0", *more]
        monkeypatch.setattr(sys, "argv", arguments)
        cost.main()
        return capsys.readouterr().out

    table = run()
    assert table.count("\n") == 2 + 2 + 4 * 2
    assert "| one pass | 2 | 1 |" in table
    monkeypatch.setattr(cost, "measure", None)
    assert run() == table
    rows = cost.Sweep(out, lambda row: row["run"]).rows
    flops = {(row["way"], row["candidates"]): row["flops"] for row in rows}
    assert flops["today", 1] == flops["one memory", 1] < flops["base apart", 1] <= flops["one pass", 1]
    assert flops["one by one", 2] == flops["base apart", 2] < flops["one pass", 2] < flops["texts", 2]
