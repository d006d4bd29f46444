"""GradMem's contrast: the task is what it says, only the memory answers, and a training writes its rows."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.common.results_file import load_rows
from benchmarks.gradmem import __main__ as contrast
from benchmarks.gradmem.learner import Arm, Learner
from benchmarks.gradmem.pairs import ASKING, LENGTH, VOCABULARY, draw
from lcc.compilers.gradmem.writing import no_prefix, predictions


def test_the_key_that_is_asked_for_has_the_value_that_is_the_answer():
    batch = draw(random.Random(0), 4, 50)
    assert batch.texts.shape == (50, 28)
    for text, read, answer in zip(batch.texts, batch.reads, batch.answers, strict=True):
        told, asked = ("".join(VOCABULARY[place] for place in ids) for ids in (text, read))
        pairs = dict(part.split(":") for part in told.strip("!").split("!!"))
        assert len(pairs) == 4
        assert asked == f"?!{asked[2:4]}:{pairs[asked[2:4]]}!|"
        assert int(answer.sum()) == 4
        assert bool(answer[ASKING:].all())


def test_the_answer_comes_from_the_memory_alone():
    learner = Learner(Arm("second", 1, 0))
    batch = draw(random.Random(1), 1, 8)
    memory = learner.written(batch.texts, "none").memory["embeddings"]
    with torch.no_grad():
        own, others = (
            predictions(learner.model, no_prefix(learner.model), {"embeddings": given}, batch.reads)
            for given in (memory, memory.roll(1, 0))
        )
        start = {"embeddings": learner.start.expand(8, -1, -1)}
        unwritten = predictions(learner.model, no_prefix(learner.model), start, batch.reads[:1].expand(8, -1))
    assert not torch.allclose(own[:, ASKING], others[:, ASKING])
    torch.testing.assert_close(unwritten, unwritten[:1].expand_as(unwritten))
    # No symbol of the answer is seen before it is predicted.
    changed = batch.reads.clone()
    changed[:, ASKING:] = 0
    with torch.no_grad():
        blind = predictions(learner.model, no_prefix(learner.model), {"embeddings": memory}, changed)
    torch.testing.assert_close(own[:, : ASKING + 1], blind[:, : ASKING + 1])


def test_an_exact_answer_has_both_symbols_right(monkeypatch):
    learner = Learner(Arm("first", 1, 0))
    for right in range(LENGTH + 1):

        def answered(model, prefix, memory, reads, right=right):
            wrong = reads.clone()
            wrong[:, ASKING + right :] += 1
            return torch.nn.functional.one_hot(wrong, len(VOCABULARY) + 1)

        monkeypatch.setattr("benchmarks.gradmem.learner.predictions", answered)
        assert learner.exact(2, 5) == float(right == LENGTH)


def test_arms_differ_in_their_gradient_alone():
    starts = {}
    for mode in ("none", "first", "second"):
        learner = Learner(Arm(mode, 1, 3, text_weight=0.0, warmup=1))
        before = learner.start.detach().clone()
        loss = learner.step(1)
        starts[mode] = (loss, before, learner.start.detach() - before)
    losses, befores, moved = zip(*starts.values(), strict=True)
    assert losses[0] == losses[1] == losses[2]
    assert torch.equal(befores[0], befores[2])
    assert not moved[0].any()
    assert not torch.equal(moved[1], moved[2])


def test_a_row_for_each_stage(tmp_path, capsys):
    command = ["--smoke", "--writes", "1", "--out", str(tmp_path / "rows.json")]
    contrast.main(command)
    rows = load_rows(tmp_path / "rows.json")
    assert [(row["grad_mode"], row["pairs"]) for row in rows] == [
        ("second", 1), ("second", 2), ("first", 1), ("first", 2),
    ]  # fmt: skip
    for row in rows:
        assert row["over"]
        assert row["steps"] == 2 * len(row["curve"])
        assert {"exact", "cpu_seconds", "seconds", "seed", "learning_rate", "curriculum", "commit"} <= row.keys()
    assert len(capsys.readouterr().out.splitlines()) == sum(len(row["curve"]) for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    contrast.main(command)
    assert load_rows(tmp_path / "rows.json") == rows
    assert not capsys.readouterr().out


def test_a_killed_training_goes_on(tmp_path):
    whole, killed = (Learner(Arm("second", 1, 0)) for _ in range(2))
    for _ in range(2):
        whole.step(1)
        killed.step(1)
    killed.save(tmp_path / "state", {"stage": 0})
    resumed = Learner(Arm("second", 1, 0))
    assert resumed.load(tmp_path / "state") == {"stage": 0}
    assert resumed.step(1) == whole.step(1)
    assert all(map(torch.equal, resumed.parameters, whole.parameters))
    with pytest.raises(ValueError, match="of another training"):
        Learner(Arm("first", 1, 0)).load(tmp_path / "state")
