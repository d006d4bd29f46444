"""``budget``: a memory at once, better ones in its place, and an end in time."""

from __future__ import annotations

import pytest
import torch

import lcc
from lcc.compilers.base import TrainedCompiler
from lcc.pipeline import budget
from lcc.pipeline.compile import make_memory
from lcc.pipeline.compile_to import compile_to, memory_output
from lcc.pipeline.option_checks import parse_seconds
from lcc.pipeline.options import CompileOptions, Run
from lcc.pipeline.probe import TeacherCost
from lcc.utils.progress import Reporter
from tests.lcc.pipeline.test_compile import fail_at, same

SILENT = Reporter(False)


@pytest.fixture
def fast(fast):
    del fast["progress"]
    return fast


@pytest.fixture
def job(llama, tokenizer, text, fast):
    """Compile within a time; returns the memory, and those that were kept on the way."""

    def run(**overrides):
        kept: list[lcc.Memory] = []
        options = CompileOptions.of(**fast | {"budget": "1h"} | overrides)
        memory = make_memory(llama, tokenizer, text, options, Run(), SILENT, kept.append)
        return memory, kept

    return run


@pytest.fixture
def to_file(llama, tokenizer, text, fast, tmp_path):
    """Compile into a file within a time."""
    path = tmp_path / "a.lcc"

    def run(force=False, **overrides):
        options = CompileOptions.of(**fast | {"budget": "1h", "certify": False} | overrides)
        output = memory_output(path, text, force=force)
        return path, compile_to(llama, tokenizer, text, output, options, Run(restart=force), SILENT)

    return run


@pytest.mark.parametrize("compiler", ["lcc", "direct_kv"])
def test_an_instant_memory_comes_first_and_better_ones_follow(job, compiler):
    memory, kept = job(compiler=compiler)
    assert kept[0].compiler == {"name": "attention_matching"}
    assert memory.compiler["name"] == compiler
    assert [each["compiler"]["name"] for each in memory.lineage] == ["attention_matching"]
    divergences = [min(point["held_out_kl"] for point in each.curve) for each in kept[1:]]
    assert divergences == sorted(divergences, reverse=True)
    assert [each.budget["finished"] for each in (*kept, memory)] == [False] * len(kept) + [True]
    assert memory.certificate is not None
    assert all(each.certificate is None for each in kept)


def test_it_is_the_memory_of_the_settings_that_it_records(job, llama, tokenizer, text, fast):
    memory, kept = job(certify=False)
    decided = {name: memory.settings[name] for name in budget.PLANNED}
    assert same(memory, lcc.compile(llama, tokenizer, text, start=kept[0], certify=False, **fast | decided))


def test_what_was_not_measured_is_not_said(job, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(budget.Clock, "say", lambda _, figures, over=False: said.append(figures))
    _, kept = job(certify=False)
    assert said[0] == "attention_matching can be asked"
    assert sum("held-out KL" in figures for figures in said) == len(kept) - 1
    assert not any("nan" in figures for figures in said)


def test_no_time_leaves_the_instant_memory(job, data_made):
    memory, kept = job(budget=1e-3)
    assert memory.compiler == {"name": "attention_matching"}
    assert same(memory, kept[0])
    assert memory.budget["finished"]
    assert memory.certificate is not None
    assert data_made == []


@pytest.mark.parametrize("certify", [True, False])
def test_steps_fill_the_time_that_data_and_certificate_leave(job, monkeypatch, certify):
    cost = TeacherCost(reading=0.25, answering=0.01, asking=0.02)
    monkeypatch.setattr(budget.Clock, "left", property(lambda clock: clock.seconds))
    monkeypatch.setattr(budget, "teacher_cost", lambda *_: ([], cost))
    monkeypatch.setattr(TrainedCompiler, "seconds_taken", lambda *_: (0.5, 0.25))
    memory, _ = job(budget="20s", steps=1000, certify=certify, held_out=0.0, questions=["Who?"] if certify else None)
    certificate = 3 * (2 * 0.25 + 65 * 0.01) if certify else 0.0
    assert memory.settings["steps"] == int((20 - certificate - 7 * 0.25) / 0.5)
    assert memory.curve[-1]["step"] == memory.settings["steps"]


def test_the_steps_of_the_slower_recipe_are_the_most(job, monkeypatch):
    monkeypatch.setattr(budget, "teacher_cost", lambda *_: ([], TeacherCost(0.0, 0.0, 0.0)))
    monkeypatch.setattr(TrainedCompiler, "seconds_taken", lambda *_: (1e-9, 0.0))
    memory, _ = job(steps=None, batch=1, patience=1, held_out=0.4, certify=False)
    assert memory.settings["steps"] == 300


def test_the_data_takes_its_share(job, monkeypatch):
    cost = TeacherCost(reading=1.0, answering=0.1, asking=0.1)
    monkeypatch.setattr(budget.Clock, "left", property(lambda clock: clock.seconds))
    monkeypatch.setattr(budget, "teacher_cost", lambda *_: ([], cost))
    monkeypatch.setattr(budget, "LEAST", {"general_queries": 1, "self_study_questions": 1})
    given = {"general_queries": None, "self_study_questions": None, "steps": 1, "certify": False}

    def decided(**given_too):
        settings = job(**given | given_too)[0].settings
        return {name: settings[name] for name in ("general_queries", "self_study_questions", "batch")}

    # Of 256 general queries, and 200 questions each asked and answered: 1 + 0.1 * 456 + 0.1 * 200 seconds.
    share = (0.4 * 10 - 1) / (0.1 * 656)
    scaled = {"general_queries": int(share * 256), "self_study_questions": int(share * 200)}
    assert decided(budget=10, batch=6) == scaled | {"batch": 6}


def test_a_file_can_be_asked_after_a_kill_and_a_second_run_goes_on(to_file, monkeypatch):
    path, status = to_file(compiler="direct_kv")
    assert status == "compiled"
    whole = lcc.Memory.load(path)
    path.unlink()
    with monkeypatch.context() as patch:
        # The first two steps are timed.
        fail_at(patch, 6, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            to_file(compiler="direct_kv")
    unfinished = lcc.Memory.load(path)
    assert not unfinished.budget["finished"]
    monkeypatch.setattr(budget, "teacher_cost", lambda *_: pytest.fail("planned again"))
    assert to_file(compiler="direct_kv")[1] == "compiled"
    assert same(lcc.Memory.load(path), whole)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_finished_file_is_skipped_and_another_budget_refused(to_file):
    to_file()
    assert to_file()[1] == "skipped"
    for other in ({"budget": "2h"}, {"budget": None}, {"compiler": "direct_kv"}, {"rank": 3}):
        with pytest.raises(lcc.MismatchError, match="differs in"):
            to_file(**other)
    path, status = to_file(budget=1e-3, force=True)
    assert status == "compiled"
    assert to_file(budget=1e-3) == (path, "skipped")


def test_a_model_without_an_instant_memory_is_compiled_all_the_same(job, monkeypatch):
    monkeypatch.setattr(budget, "INSTANT", ("none of this name",))
    for time in ("1h", 1e-3):
        memory, kept = job(budget=time, compiler="direct_kv")
        assert memory.lineage == []
        assert all(each.compiler["name"] == "direct_kv" for each in (memory, *kept))


@pytest.mark.parametrize(
    ("overrides", "match"),
    [({"compiler": "attention_matching"}, "no steps to fill"), ({"ratio": "auto"}, "many memories"),
     ({"budget": "soon"}, "90s, 10m or 2h"), ({"budget": 0}, "above 0"), ({"budget": "-1s"}, "above 0"),
     ({"budget": "nan"}, "above 0"), ({"budget": "s"}, "above 0"), ({"budget": [1]}, "above 0")],
)  # fmt: skip
def test_what_a_budget_does_not_go_with(overrides, match):
    with pytest.raises(lcc.InputError, match=match):
        CompileOptions.of(**{"budget": "1h"} | overrides)


def test_a_start_is_refused(job, llama, tokenizer, text, fast):
    start = lcc.compile(llama, tokenizer, text, compiler="attention_matching", ratio=8, certify=False, progress=False)
    with pytest.raises(lcc.InputError, match="makes its own start"):
        job(start=start)


def test_times():
    assert [parse_seconds(given) for given in (90, 1.5, "90", "90s", "1.5m", "2h")] == [90, 1.5, 90, 90, 90, 7200]


def test_the_random_state_of_the_caller_is_kept(job):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    job()
    assert torch.equal(before, torch.random.get_rng_state())
