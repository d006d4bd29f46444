"""Direct KV optimisation: where it starts, how it goes on, and what it takes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.modeling.prefill import prefill
from tests.lcc.pipeline.test_compile import fail_at, same


@pytest.fixture
def job(llama, tokenizer, text, fast):
    def run(**overrides):
        return lcc.compile(llama, tokenizer, text, **(fast | {"compiler": "direct_kv"} | overrides))

    return run


def test_it_starts_at_the_first_tokens_and_is_trained(job, llama, tokenizer, text):
    memory = job(steps=1, learning_rate=1e-12)
    ids = tokenizer(text).input_ids[: memory.buffer_tokens]
    with torch.no_grad():
        read = prefill(llama, [*memory.prefix_ids, *ids]).tail(memory.buffer_tokens)
    torch.testing.assert_close(memory.kv.keys, read.unrotated(llama).keys)
    trained = job()
    assert trained.compiler == {"name": "direct_kv"}
    assert not torch.equal(trained.kv.keys, memory.kv.keys)
    assert not {"rank", "alpha", "buffer_init"} & trained.settings.keys()


def test_it_goes_on_after_a_kill_and_shares_lccs_data(job, tmp_path, monkeypatch, data_made):
    lcc_memory = job(compiler="lcc", surrogates=tmp_path / "shared")
    whole = job(surrogates=tmp_path / "shared")
    assert len(data_made) == 1
    assert whole.questions == lcc_memory.questions
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint=tmp_path / "run", checkpoint_every=1)
    with pytest.raises(lcc.MismatchError, match=r"differs in .*compiler"):
        job(compiler="lcc", checkpoint=tmp_path / "run")
    assert same(job(checkpoint=tmp_path / "run"), whole)


def test_the_command_line_names_it(tokenizer, text, tmp_path, llama):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text(text)
    command = ["compile", str(tmp_path / "text"), "-o", str(tmp_path / "m"), "--model", str(tmp_path / "model")]
    command += ["--ratio", "8", "--steps", "1", "--compiler", "direct_kv", "--set", "general_queries=4", "--set"]
    shown = CliRunner().invoke(cli.app, [*command, "self_study_questions=0", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["compiler"] == {"name": "direct_kv"}
    wrong = CliRunner().invoke(cli.app, [*command, "rank=8"])
    assert wrong.exit_code == 2
    assert "rank is a setting of the compiler 'lcc'" in " ".join(wrong.output.split())
    refused = CliRunner().invoke(cli.app, [*command, "self_study_questions=0", "--dry-run"])
    assert refused.exit_code == 2
    assert "this one is 'direct_kv'" in " ".join(refused.output.split())


def test_chunks_are_refused(job):
    with pytest.raises(lcc.InputError, match="DirectKV reads no text in chunks"):
        job(encode_chunk=16)
