"""The command that exports a state of llama.cpp."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from lcc.cli.app import app
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.llama_cpp import parse_state, placeholders
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model


def test_export_to_llama_cpp(tmp_path, monkeypatch):
    model, tokenizer = tiny_model("llama"), build_tokenizer()
    monkeypatch.setattr("lcc.cli.loading.load_model", lambda name: (model, tokenizer))
    plain = tmp_path / "plain.lcc.safetensors"
    plain_memory(model, tokenizer, "Mara lives in the quiet old town of Selby.", monkeypatch)[0].save(plain)

    def run(*arguments: object, code: int = 0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result

    command = ["export", plain, "--to", "llama-cpp", "-o"]
    report = json.loads(run(*command, tmp_path / "m.ggsq", "--json").stdout)
    assert report["bytes"] == (tmp_path / "m.ggsq").stat().st_size
    assert placeholders(report["path"]) == [report["placeholder"]] * report["tokens"]
    options = ["--kv", "f32", "--no-flash-attn", "--state-version", 3]
    said = " ".join(run(*command, f"{tmp_path / 'folder'}/", *options).stdout.split())
    path = tmp_path / "folder" / "state.ggsq"
    assert f"a prompt is {report['tokens']} x token {placeholders(path)[0]}, and then the query's tokens" in said
    assert parse_state(path)["state_version"] == 3
    assert path.stat().st_size > report["bytes"] * 1.9
    run(*command, tmp_path / "new", "--kv", "q8_0", code=2)
    run(*command, plain, code=4)
    run("export", plain, "--to", "safetensors", "-o", tmp_path / "new", "--kv", "f16", code=2)
    assert not (tmp_path / "new").exists()
