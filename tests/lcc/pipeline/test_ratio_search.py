"""``ratio="auto"``: which ratios are tried, what is kept when none is enough, and how a search goes on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.payload import KVPayload
from lcc.modeling.kv import KV
from lcc.pipeline import compile_once as compiling
from lcc.pipeline import ratio_search
from lcc.pipeline.options import CompileOptions, Run
from lcc.training import trainer as optimize
from lcc.utils.progress import Reporter
from tests.support.plain_memories import certificate_with
from tests.support.tiny_models import tiny_model


def memory_of(ratio, kept, no_text=0.0):
    score = {"full_text": 0.5, "memory": 0.5, "no_text": no_text}
    kv = KV(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    return lcc.Memory(
        KVPayload(kv), prefix_ids=(), ratio=ratio, source_tokens=64, source_sha256="", rope={}, fingerprint={},
        settings={}, certificate=certificate_with(None if kept is None else {"kept": kept[ratio], "score": score}),
    )  # fmt: skip


@pytest.fixture
def search(monkeypatch):
    """Search among memories that keep so much at each ratio; returns the result and what was attempted."""

    def run(kept, target=0.9, tokens=64, folder=None, no_text=0.0):
        attempts = []

        def compile_once(model, tokenizer, text, options, run, reporter):
            attempts.append((options.settings.ratio, run.checkpoint))
            return memory_of(options.settings.ratio, kept, no_text)

        chat = SimpleNamespace(ids=lambda text: [1] * tokens)
        monkeypatch.setattr(ratio_search, "compile_once", compile_once)
        monkeypatch.setattr(ratio_search, "ChatFormat", SimpleNamespace(of=lambda tokenizer: chat))
        options = CompileOptions.of(ratio="auto", target=target)
        found = ratio_search.search_ratio(None, None, "", options, Run(folder), Reporter(False))
        try:
            return ratio_search.require_target(found), attempts
        except lcc.TargetError as error:
            return error, attempts

    return run


def test_the_largest_ratio_that_meets_the_target(search, tmp_path):
    found, attempts = search({32: 0.5, 16: 0.8, 8: 0.9, 4: 1.0}, folder=tmp_path)
    assert found.ratio == 8
    assert attempts == [(ratio, tmp_path / f"ratio-{ratio}") for ratio in (32, 16, 8)]
    tried = [(each["ratio"], each["kept"], each["buffer_tokens"]) for each in found.ratio_search["tried"]]
    assert tried == [(32, 0.5, 2), (16, 0.8, 2), (8, 0.9, 2)]
    assert (found.ratio_search["target"], found.ratio_search["met"]) == (0.9, True)


def test_ratios_that_the_text_is_too_short_for_are_left_out(search):
    assert [ratio for ratio, _ in search({8: 1.0}, tokens=31)[1]] == [8]
    assert [ratio for ratio, _ in search({2: 1.0}, tokens=3)[1]] == [2]


def test_the_best_is_kept_when_none_is_enough(search):
    error, attempts = search({32: 0.1, 16: 0.7, 8: 0.7, 4: 0.6, 2: 0.2})
    assert isinstance(error, lcc.TargetError)
    assert len(attempts) == 5
    assert error.memory.ratio == 16  # the larger of two that are as good
    assert error.memory.ratio_search["met"] is False
    assert "no ratio keeps 0.9" in str(error)
    assert "0.700 at 16" in str(error)
    assert "lower the target" in str(error)
    sent = copy.copy(error)  # as between processes
    assert (str(sent), sent.memory) == (str(error), error.memory)


@pytest.mark.parametrize("no_text", [0.5, 0.7])
def test_a_text_that_is_no_help_meets_no_target(search, no_text):
    """Whatever a memory keeps of a score that the model has without the text says nothing."""
    error, attempts = search(dict.fromkeys((32, 16, 8, 4, 2), 1.0), no_text=no_text)
    assert isinstance(error, lcc.TargetError)
    assert len(attempts) == 1
    assert error.memory.ratio_search["met"] is False
    assert f"0.500 with the full text and {no_text:.3f} without it" in str(error)
    assert "give questions that the text answers" in str(error)


@pytest.mark.parametrize("kept", [None, dict.fromkeys((32, 16, 8, 4, 2))])
def test_what_cannot_be_measured_is_refused(search, kept):
    with pytest.raises(lcc.InputError, match=r"nothing to measure|answers none"):
        search(kept)


@pytest.fixture
def keeps(monkeypatch):
    """Let certificates say that memories keep so much at each ratio."""
    real, shares = compiling.measure, {}

    def measure(model, context, memory, *rest):
        found = real(model, context, memory, *rest)
        return found | {"questions": found["questions"] | {"kept": shares[memory.ratio]}}

    monkeypatch.setattr(compiling, "measure", measure)
    return shares


@pytest.fixture
def job(llama, tokenizer, text, fast):
    def run(**overrides):
        return lcc.compile(llama, tokenizer, text, **(fast | {"ratio": "auto"} | overrides))

    return run


def test_compile_searches(job, keeps, llama, tokenizer, tmp_path):
    keeps.update({32: 0.5, 16: 0.97, 8: 0.99})
    memory = job(checkpoint=tmp_path / "run")
    memory.verify(llama, tokenizer)
    assert memory.ratio == memory.settings["ratio"] == 8
    assert memory.ratio_search["target"] == 0.98
    assert not (tmp_path / "run").exists()
    memory.save(tmp_path / "m")
    assert lcc.Memory.load(tmp_path / "m").ratio_search == memory.ratio_search
    named = job(ratio=8)
    assert named.ratio_search is None
    assert torch.equal(named.kv.keys, memory.kv.keys)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_ratios_share_their_surrogate_data(job, keeps, tmp_path, data_made, checkpoint):
    keeps.update({32: 0.5, 16: 0.97, 8: 0.99})
    assert job(checkpoint=tmp_path / "run" if checkpoint else None).ratio == 8
    assert len(data_made) == 1


def test_one_shot_questions_and_queries_serve_every_ratio(job, keeps):
    keeps.update({32: 0.5, 16: 1.0})
    memory = job(questions=iter(["Where does Mara live?"]), queries=(f"Say: {n}." for n in range(40)))
    assert memory.ratio == 16
    assert memory.certificate["questions"]["count"] == 1


def test_a_killed_search_goes_on_where_it_stopped(job, keeps, tmp_path, monkeypatch):
    monkeypatch.setattr(ratio_search, "LADDER", (32.0, 16.0))
    keeps.update({32: 0.5, 16: 1.0})
    whole = job()
    real, steps = optimize.step_loss, []

    def counted(*arguments):
        steps.append(1)
        if len(steps) == 7:  # the third step at ratio 16
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(optimize, "step_loss", counted)
    with pytest.raises(KeyboardInterrupt):
        job(checkpoint=tmp_path / "run")
    *folders, surrogate = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert folders == ["ratio-16", "ratio-32"]
    assert surrogate.startswith("surrogate-")
    memory = job(checkpoint=tmp_path / "run")
    assert len(steps) == 7 + 2
    assert torch.equal(memory.kv.keys, whole.kv.keys)
    assert memory.ratio_search == whole.ratio_search
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"target": 0.0}, "target is 0.0"),
        ({"target": 1.5}, "target is 1.5"),
        ({"certify": False}, "leave certify on"),
        ({"self_study_questions": 0}, "nothing to measure"),
        ({"self_study_weight": 0.0}, "nothing to measure"),
        ({"held_out": 0.1}, "nothing to measure"),  # a tenth of six questions
        ({"ratio": 8, "target": 0.9}, 'target is for ratio="auto"'),
    ],
)
def test_searches_that_could_not_end_are_refused_before_the_work(job, monkeypatch, options, reason):
    monkeypatch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
    with pytest.raises(lcc.InputError, match=reason):
        job(**options)


@pytest.fixture
def run(tmp_path, text, monkeypatch):
    """Run a command on two copies of a text, with a tiny model and two ratios to try."""
    monkeypatch.setattr(ratio_search, "LADDER", (32.0, 16.0))
    tiny_model("llama").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    for name in ("first", "second"):
        (tmp_path / f"{name}.txt").write_text(text)
    fast = ("batch=2", "general_queries=8", "self_study_questions=8", "held_out=0.3", "max_response_tokens=8")
    fast += ("self_study_temperature=5", "self_study_piece=6")  # a whole number will do
    fast += ("self_study_hard=0", "self_study_follow_ups=0")
    small = [part for pair in fast for part in ("--set", pair)]

    def invoke(*arguments, code=0):
        command = ["compile", *map(str, arguments), *small, "--steps", "2", "--model", str(tmp_path / "model")]
        result = CliRunner().invoke(cli.app, command)
        assert result.exit_code == code, result.output
        return result

    return invoke


def words(result):
    return " ".join(result.output.replace("│", " ").split())


def test_command_line(run, keeps, tmp_path):
    keeps.update({32: 0.5, 16: 0.95})
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "Where does Mara live?"}\n')
    output = tmp_path / "m"
    first = tmp_path / "first.txt"
    shown = words(run(first, "-o", output, "--ratio", "auto", "--target", 0.9, "--questions", questions))
    for part in ("certificate", "score on 1 questions (given)", "tried ratio 32 keeps 50.0 %", "of the full text's"):
        assert part in shown
    assert lcc.Memory.load(output).ratio == 16
    assert "differs in target" in words(run(first, "-o", output, "--ratio", "auto", code=3))
    missed = run(first, "-o", output, "--ratio", "auto", "--json", "--force", code=6)
    summary = json.loads(missed.stdout)
    assert summary["ratio_search"]["met"] is False
    assert summary["ratio"] == 16
    assert f"which is in {output}" in words(missed)
    assert lcc.Memory.load(output).ratio_search["target"] == 0.98
    assert not Path(f"{output}.checkpoint").exists()


def test_folders_skip_what_met_the_target_and_say_again_what_missed_it(run, keeps, tmp_path, monkeypatch):
    sources = tmp_path / "first.txt", tmp_path / "second.txt"
    keeps.update({32: 0.95, 16: 0.95})
    folder = tmp_path / "memories"
    enough = ("-o", folder, "--ratio", "auto", "--target", 0.9, "--json")
    assert [each["status"] for each in json.loads(run(*sources, *enough).stdout)["documents"]] == ["compiled"] * 2
    with monkeypatch.context() as patch:
        patch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
        assert [each["status"] for each in json.loads(run(*sources, *enough).stdout)["documents"]] == ["skipped"] * 2
        other = json.loads(run(*sources, "-o", folder, "--ratio", "auto", "--json", code=1).stdout)
        assert "differs in target" in other["documents"][0]["error"]
    too_much = ("-o", folder, "--ratio", "auto", "--force", "--json")
    failed = json.loads(run(*sources, *too_much, code=1).stdout)["documents"]
    assert [each["status"] for each in failed] == ["failed"] * 2
    monkeypatch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
    again = json.loads(run(*sources, *too_much, code=1).stdout)["documents"]
    assert [each["error"] for each in again] == [each["error"] for each in failed]
    assert lcc.Memory.load(failed[0]["output"]).ratio == 32


def test_wrong_usage(run, tmp_path):
    text = tmp_path / "first.txt"
    assert "neither a number nor auto" in run(text, "-o", tmp_path / "m", "--ratio", "most", code=2).output
    assert "dry run is of one ratio" in words(run(text, "--dry-run", "--ratio", "auto", code=2))
    assert "leave certify on" in words(run(text, "-o", tmp_path / "m", "--ratio", "auto", "--no-certify", code=2))
