"""``distractors``: memories of other texts that one is trained among."""

from __future__ import annotations

import json
import random

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.inference.reader import Reader
from lcc.pipeline.distractors import with_samples
from lcc.pipeline.settings import make_settings
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.lcc.pipeline.test_compile import fail_at, same
from tests.support.tiny_models import tiny_model

TRAINED = ("direct_kv", "lcc")
AMONG = {"isolated_share": 0.25, "max_distractors": 2}


def other_text(seed):
    return document(random.Random(seed), people=2, attributes=2).text


@pytest.fixture
def job(llama, tokenizer, text, fast):
    def run(content=text, **overrides):
        return lcc.compile(
            llama, tokenizer, content, **(fast | {"compiler": "direct_kv", "certify": False} | overrides)
        )

    return run


@pytest.fixture
def others(job, once):
    compilers = ("attention_matching", "attention_matching", "direct_kv")
    return once("others", lambda: [job(other_text(n), compiler=name) for n, name in enumerate(compilers, 1)])


@pytest.mark.parametrize("compiler", TRAINED)
def test_with_isolated_steps_alone_nothing_changes(job, others, compiler):
    alone = job(compiler=compiler)
    assert alone.distractors == []
    assert same(job(compiler=compiler, distractors=others, isolated_share=1), alone)
    assert not same(job(compiler=compiler, distractors=others, **AMONG), alone)


@pytest.mark.parametrize("compiler", TRAINED)
def test_it_goes_on_after_a_kill(job, others, compiler, tmp_path, monkeypatch):
    options = {"compiler": compiler, "distractors": others} | AMONG
    whole = job(**options)
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint=tmp_path / "run", checkpoint_every=1, **options)
    with pytest.raises(lcc.MismatchError, match="differs in distractors"):
        job(checkpoint=tmp_path / "run", **options | {"distractors": others[:2]})
    assert same(job(checkpoint=tmp_path / "run", **options | {"distractors": others[::-1]}), whole)


def test_it_goes_on_from_a_memory_that_was_compiled_alone(job, others):
    alone = job()
    options = {"start": alone, "distractors": others, "steps": 2, "isolated_share": 0.0, "patience": 0}
    repaired = job(**options)
    assert repaired.lineage == alone.with_ancestors()
    assert repaired.distractors
    assert not torch.equal(repaired.kv.values, alone.kv.values)
    assert not same(repaired, job(**options | {"isolated_share": 1.0}))


def test_distractors_are_asked_what_they_were_trained_on(job, llama, tokenizer):
    trained = [job(other_text(seed)) for seed in (1, 2)]
    settings, chat = make_settings(isolated_share=0.25, max_response_tokens=8), ChatFormat.of(tokenizer)
    for memory, distractor in zip(trained, with_samples(trained, llama, chat, settings), strict=True):
        assert torch.equal(distractor.kv.keys, memory.kv.keys)
        assert sorted(map(str, memory.questions)) == sorted(str(sample.query) for sample in distractor.samples)
        said = Reader.of_memory(llama, chat, memory).say([sample.query for sample in distractor.samples], 8)
        assert list(said.responses) == [sample.response_ids for sample in distractor.samples]
        torch.testing.assert_close(said.states, torch.cat([sample.teacher_hidden for sample in distractor.samples]))
    for without in ({"isolated_share": 1.0}, {"distractor_weight": 0.0}):
        isolated = make_settings(max_response_tokens=8, **without)
        assert not any(one.samples for one in with_samples(trained, llama, chat, isolated))
    options = {"distractors": trained} | AMONG
    assert not same(job(**options), job(**options, distractor_weight=0.0))


def test_the_file_names_what_it_was_trained_among(job, others, tmp_path):
    memory = job(distractors=[others[2], others[0], others[0]])
    assert memory.distractors == sorted(memory.digest for memory in (others[0], others[2]))
    memory.save(tmp_path / "memory")
    assert lcc.Memory.load(tmp_path / "memory").distractors == memory.distractors
    assert lcc.Memory.load(tmp_path / "memory").digest == memory.digest


def test_a_folder_of_memories_and_the_texts_own_among_them(job, others, compile_all, tmp_path):
    bank = tmp_path / "bank"
    bank.mkdir()
    alone = job()
    for number, memory in enumerate([*others, alone]):
        memory.save(bank / f"{number}.lcc.safetensors")
    (bank / "notes.txt").write_text("no memory")
    options = {"compiler": "direct_kv", "certify": False, "distractors": [bank]} | AMONG
    assert [outcome.status for outcome in compile_all(**options)] == ["compiled", "compiled", "failed"]
    made = lcc.Memory.load(tmp_path / "memories" / "first.lcc.safetensors")
    assert made.distractors == sorted(memory.digest for memory in others)
    assert same(made, job(distractors=others, **AMONG))
    second = lcc.Memory.load(tmp_path / "memories" / "second.lcc.safetensors")
    assert second.distractors == sorted(memory.digest for memory in (*others, alone))
    assert [outcome.status for outcome in compile_all(**options)][:2] == ["skipped", "skipped"]
    fewer = compile_all(**options | {"distractors": others[:2]})[0]
    assert fewer.status == "failed"
    assert "differs in distractors" in fewer.error


@pytest.mark.parametrize("compiler", ["attention_matching", "gradmem", "flashmem"])
def test_compilers_without_training_refuse_them(job, others, compiler):
    with pytest.raises(lcc.InputError, match=f"'{compiler}' takes no distractors"):
        job(compiler=compiler, distractors=others)


def test_refused(job, others, text, tmp_path):
    for options, cause in (
        ({"distractors": []}, "there are no distractors"),
        ({"distractors": tmp_path}, "there are no distractors"),
        ({"distractors": [job()]}, "memories of this very text"),
        ({"distractors": others, "budget": 60}, "without distractors"),
        ({"distractors": others, "max_distractors": 0}, "max_distractors"),
    ):
        with pytest.raises(lcc.InputError, match=cause):
            job(**options)
    (tmp_path / "wrong").write_text("no memory")
    with pytest.raises(lcc.MemoryFileError):
        job(distractors=[tmp_path / "wrong"])


def test_refused_of_other_models_prefixes_and_numbers(job, others, llama, tokenizer):
    small = lcc.quantize(others[0], "int8", llama, tokenizer, answers=2, max_new_tokens=2)
    with pytest.raises(lcc.InputError, match="a distractor is a int8 memory"):
        job(distractors=[small])
    with pytest.raises(lcc.MismatchError, match="another prefix"):
        job(distractors=others, keep_prefix=False)
    with pytest.raises(lcc.MismatchError, match="model"):
        lcc.compile(tiny_model("qwen3"), tokenizer, other_text(0), ratio=8, compiler="direct_kv", distractors=others)


def test_a_step_must_fit_the_window(tokenizer, text, fast):
    options = fast | {"compiler": "direct_kv", "certify": False, "steps": 1}
    model = tiny_model("llama", max_position_embeddings=223)
    matched = options | {"compiler": "attention_matching", "ratio": 1}
    others = [lcc.compile(model, tokenizer, other_text(seed), **matched) for seed in (1, 2, 3)]
    tokens = len(tokenizer(text).input_ids)
    beside = sum(memory.buffer_tokens for memory in others)
    assert len(others[0].prefix_ids) + beside + -(-tokens // 8) + tokens + fast["max_response_tokens"] == 224
    with pytest.raises(lcc.InputError, match=r"window of 224 tokens.* lower max_distractors"):
        lcc.compile(model, tokenizer, text, distractors=others, **options)
    lcc.compile(model, tokenizer, text, distractors=others, max_distractors=2, **options)


def test_a_plan_counts_them(others, llama, tokenizer, text, fast):
    del fast["progress"]

    def planned(**options):
        return lcc.plan(llama, tokenizer, text, **fast | {"general_queries": 12} | options)

    alone, among = planned().step_bytes, planned(distractors=others).step_bytes
    assert alone < planned(distractors=others, max_distractors=1).step_bytes < among
    assert planned(distractors=others, isolated_share=1).step_bytes == alone
    with pytest.raises(lcc.MismatchError, match="another prefix"):
        planned(distractors=others, keep_prefix=False)


def test_the_command_takes_files_and_folders(others, llama, text, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "bank").mkdir()
    others[0].save(tmp_path / "bank" / "a.lcc.safetensors")
    others[1].save(tmp_path / "b")
    command = ["compile", tmp_path / "text.txt", "-o", tmp_path / "memory", "--model", tmp_path / "model", "--json",
               "--ratio", 8, "--steps", 2, "--compiler", "direct_kv", "--no-certify", "--set", "self_study_questions=4",
               "--set", "max_response_tokens=8", "--set", "general_queries=8", "--set", "isolated_share=0.25",
               "--distractors", tmp_path / "bank", "--distractors", tmp_path / "b"]  # fmt: skip
    result = CliRunner().invoke(cli.app, list(map(str, command)))
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["distractors"] == sorted(memory.digest for memory in others[:2])
    assert summary["settings"]["isolated_share"] == 0.25
