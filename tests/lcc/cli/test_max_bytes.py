"""``--max-bytes``: one memory, a folder of them, and what ``inspect`` says of it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from tests.support.tiny_models import tiny_model

SMALL = ("--steps", "1", "--set", "batch=2", "--set", "self_study_questions=4", "--set", "max_response_tokens=8")
TEXT = "Mara lives in the old town of Tarn. Hugo works every day as a baker. The dog of Mara is called Pim."


@pytest.fixture
def run(tokenizer, tmp_path):
    model = tmp_path / "model"
    tiny_model("llama").save_pretrained(model)
    tokenizer.save_pretrained(model)

    def command(*words, code=0):
        result = CliRunner().invoke(cli.app, [*map(str, words), "--model", str(model)])
        assert result.exit_code == code, result.output
        return result

    return command


@pytest.fixture
def texts(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text(TEXT)
    paths[1].write_text(TEXT * 3)
    return paths


def test_a_memory_of_so_many_bytes(run, texts, tmp_path):
    output = tmp_path / "m"
    summary = json.loads(run("compile", texts[0], "-o", output, "--max-bytes", "11kB", "--json", *SMALL).stdout)
    assert output.stat().st_size <= summary["max_bytes"] == 11000
    assert summary["dtype"] == lcc.Memory.load(output).dtype
    shown = CliRunner().invoke(cli.app, ["inspect", str(output)]).stdout
    assert f"11,000 bytes; the file has {output.stat().st_size:,}" in " ".join(shown.split())
    assert "skipped" in run("compile", texts[0], "-o", output, "--max-bytes", "11kB", *SMALL).stderr
    refused = run("compile", texts[0], "-o", output, "--max-bytes", "12kB", *SMALL, code=3).output
    assert "differs in max_bytes" in " ".join(refused.split())


def test_every_memory_of_a_folder_has_them(run, texts, tmp_path):
    run("compile", *texts, "-o", tmp_path / "all", "--max-bytes", "11.5kB", "--no-certify", *SMALL)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "all").glob("*.lcc.safetensors")}
    assert len(sizes) == 2
    assert max(sizes.values()) <= 11500


def test_too_few_bytes(run, texts, tmp_path):
    shown = run("compile", texts[0], "-o", tmp_path / "m", "--max-bytes", "1kB", *SMALL, code=2).output
    assert "raise max_bytes by" in " ".join(shown.split())
    assert not (tmp_path / "m").exists()
