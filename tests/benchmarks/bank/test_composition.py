"""``benchmarks.bank.composition``: who stands in company, where, and what is made of the rows."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from benchmarks.bank import composition
from benchmarks.bank.elsewhere import ElsewhereKV
from lcc.data.samples import Sample
from lcc.modeling.kv import KV
from lcc.text.context import build_context
from lcc.training.distractors import Distractor, Distractors
from lcc.training.settings import ExecutionSettings
from lcc.training.student import student_hidden
from tests.support.tiny_models import tiny_model


def test_documents_of_a_group_share_no_name_and_distractors_none_with_them():
    groups = [composition.documents(composition.APART * (number + 1), composition.GROUP, True) for number in (0, 1)]
    for group in groups:
        names = [name for _, written in group for name in written.names]
        assert len(set(names)) == composition.GROUP * composition.PEOPLE
        assert set(names) <= composition.NAMED
    others = composition.documents(0, composition.DISTRACTORS, False)
    assert not {name for _, written in others for name in written.names} & composition.NAMED
    seeds = [seed for drawn in (*groups, others) for seed, _ in drawn]
    assert len(set(seeds)) == len(seeds)


def test_elsewhere_is_the_place_among_distractors_that_nobody_sees(tokenizer, text):
    model = tiny_model("llama", torch.float64)
    memory = ElsewhereKV(model, build_context(model, tokenizer, text, 8))
    other = Distractor(KV(*torch.randn(2, *memory.encode().keys.shape[:2], 5, 12, dtype=torch.float64)))
    distractors = Distractors((other,), (other, other))
    sample = Sample(tuple(tokenizer("Where does Vera live?").input_ids), (7, 9), "general", "", torch.zeros(2, 48))
    hidden = student_hidden(memory, [sample], True, ExecutionSettings(), distractors)

    visible = super(ElsewhereKV, memory).visible(memory.encode(), True, distractors)
    cache, prefix, own = DynamicCache(), len(memory.prefix), len(memory.encode())
    for layer, (keys, values) in enumerate(zip(visible.keys, visible.values, strict=True)):
        cache.update(keys[None], values[None], layer)
    seen = torch.ones(1, len(visible) + len(sample.input_ids), dtype=torch.int64)
    seen[:, prefix : prefix + 5] = 0
    seen[:, prefix + 5 + own : len(visible)] = 0
    positions = torch.arange(len(visible), seen.shape[1])[None]
    plain = model.model(
        torch.tensor([sample.input_ids]), attention_mask=seen, position_ids=positions, past_key_values=cache
    ).last_hidden_state[0, len(sample.query_ids) - 1 :]
    torch.testing.assert_close(hidden, plain, rtol=1e-9, atol=1e-9)


def test_the_table_has_a_line_a_reader_and_its_places():
    row = {"compiler": "direct_kv", "ratio": 8.0, "reader": "alone", "group": 0, "kl": 0.5, "unknown": 0.0}
    places = [(1, 1, 1.0), (2, 1, 0.5), (2, 2, 0.75), *((5, place, 0.25) for place in range(1, 6))]
    rows = [row | {"company": n, "place": place, "score": score} for n, place, score in places]
    head, _, line = composition.table(rows).splitlines()
    assert head.count("|") == line.count("|")
    assert "| 100.0 %, KL 0.500 | 62.5 % (50.0, 75.0), KL 0.500 |" in line


def test_every_reader_but_alone_is_trained_among_distractors(monkeypatch, tmp_path):
    group = composition.Group(0, "direct_kv", 8.0, tmp_path)
    monkeypatch.setattr(composition.Group, "memory", lambda self, seed, written, reader: f"{seed} {reader}")
    for reader in composition.READERS[1:]:
        options = group.options(7, group.documents[0][1], reader)
        assert ("distractors" in options) == (reader != "alone")
        assert options.get("start") == ("7 alone" if reader.startswith("alone >") else None)
