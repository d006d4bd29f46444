"""The command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading as load
from lcc.compilers.flashmem import learned
from lcc.compilers.flashmem.consolidator import FORMS
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.memory.store import FileStore
from lcc.modeling.fingerprint import model_digests
from lcc.utils.outputs import Output
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

runner = CliRunner()


# A random model ends hardly any question: few, and short ones.
SMALL = ("--set", "self_study_questions=6", "--set", "max_response_tokens=8")


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def document(tmp_path, text):
    path = tmp_path / "document.txt"
    path.write_text(text)
    return str(path)


@pytest.fixture
def run(model_folder):
    def invoke(*arguments: object, model: bool = True, code: int = 0, **options):
        command = [str(argument) for argument in arguments] + (["--model", model_folder] if model else [])
        command += SMALL if command[0] in ("compile", "demo") else ()
        result = runner.invoke(cli.app, command, **options)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def memory(run, document, tmp_path):
    path = tmp_path / "document.lcc.safetensors"
    run("compile", document, "-o", path, "--ratio", 8, "--steps", 2, "--set", "batch=4", "--set", "loss=mse")
    return path


def test_compile_inspect_verify_ask(run, memory, tmp_path):
    assert lcc.Memory.load(memory).ratio == 8
    assert lcc.Memory.load(memory).settings["loss"] == "mse"
    assert not list(tmp_path.glob("*.checkpoint"))
    shown = run("inspect", memory, model=False).stdout
    for word in ("buffer tokens", "held-out KL", "model weights", "settings", "certificate", "general queries"):
        assert word in shown
    smaller = tmp_path / "smaller"
    run("quantize", memory, "-o", smaller, "--answers", 1)
    shown = run("inspect", smaller, model=False).stdout
    assert "certificate of the float32 memory, before it became int8" in " ".join(shown.split())
    summary = json.loads(run("inspect", memory, "--json", model=False).stdout)
    assert summary["buffer_tokens"] == lcc.Memory.load(memory).buffer_tokens
    assert json.loads(run("verify", memory, "--json").stdout)["verified"] is True
    assert "belongs to this model" in run("verify", memory).stdout.replace("\n", " ")
    answers = json.loads(run("ask", memory, "Where does Mara live?", "Say: dog.", "--json").stdout)["answers"]
    assert [row["question"] for row in answers] == ["Where does Mara live?", "Say: dog."]
    assert "Say: dog." in run("ask", memory, "Where does Mara live?", "Say: dog.").stdout


def test_compile_reads_standard_input_and_reports_json(run, text, tmp_path):
    output = tmp_path / "memory"
    result = run("compile", "-", "-o", output, "--steps", 1, "--ratio", 8, "--set", "batch=2", "--json", input=text)
    assert json.loads(result.stdout)["path"] == str(output)


def test_a_finished_memory_is_skipped(run, document, tmp_path):
    output = tmp_path / "m"
    command = ("compile", document, "-o", output, "--ratio", 8, "--steps", 1, "--set", "batch=2", "--no-certify")
    run(*command)
    before = output.stat()
    again = run(*command)
    assert f"skipped: {output}" in again.stderr
    assert json.loads(run(*command, "--json").stdout)["path"] == str(output)
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "differs in seed: compile it again with --force" in run(*command, "--seed", 1, code=3).output
    Path(document).write_text(Path(document).read_text() + " Mara plays.")
    assert "differs in source_sha256; name another file" in run(*command, code=3).output
    assert output.stat().st_ino == before.st_ino
    run(*command, "--force")
    assert output.stat().st_ino != before.st_ino


def test_a_slash_makes_a_folder(run, document, tmp_path):
    run("compile", document, "-o", f"{tmp_path}/new/", "--ratio", 8, "--steps", 1, "--set", "batch=2")
    memory = tmp_path / "new" / "document.lcc.safetensors"
    assert memory.is_file()
    run("quantize", memory, "-o", f"{tmp_path}/small/", "--answers", 1)
    assert lcc.Memory.load(tmp_path / "small" / "document.lcc.safetensors").quantized
    run("compile", document, "-o", f"{memory}/", code=4)
    run("compile", "-", "-o", f"{tmp_path}/other/", input="Mara", code=2)
    assert not (tmp_path / "other").exists()


def test_a_claimed_memory_is_left_alone(run, document, tmp_path):
    with FileStore(Output.of).claim(str(tmp_path / "m")) as mine:
        assert mine
        shown = run("compile", document, "-o", tmp_path / "m", "--ratio", 8, code=4).output
    assert "another process is writing" in shown
    assert not (tmp_path / "m").exists()


def test_what_a_diverged_run_is_told_works(run, document, tmp_path):
    command = ("compile", document, "-o", tmp_path / "m", "--ratio", 8, "--steps", 3, "--set", "batch=2")
    assert "lower learning_rate" in run(*command, "--set", "learning_rate=1e25", code=5).output
    run(*command, "--set", "learning_rate=0.01")
    assert lcc.Memory.load(tmp_path / "m").settings["learning_rate"] == 0.01


def test_chat(run, memory):
    shown = run("chat", memory, input="Where does Mara live?\nAnd Hugo?\n\n").stdout
    assert shown.count("memory:") == 2


def test_chat_with_a_monitor(run, memory, tmp_path):
    """Calibrated and kept at first, read then; a turn of which a token is above the threshold becomes a memory."""
    path, said = tmp_path / "monitor.json", "Where does Mara live? " * 12 + "\n\n"
    shown = " ".join(run("chat", memory, "--monitor", path, input=said).stdout.split())
    monitor = lcc.Monitor.load(path)
    assert f"it triggers above {monitor.threshold:.3f} nats, written to {path}" in shown
    replace(monitor, threshold=0.0).save(path)
    shown = " ".join(run("chat", memory, "--monitor", path, "--ratio", 4, input=said).stdout.split())
    assert "calibrating" not in shown
    found = re.search(r"what was said is a running memory now, (\d+) tokens → (\d+)", shown)
    assert found
    assert int(found[1]) > int(found[2])
    path.write_text("{")
    assert "is not JSON" in run("chat", memory, "--monitor", path, code=4).output
    run("chat", memory, "--monitor", tmp_path / "no folder" / "monitor.json", code=4)
    run("chat", memory, "--ratio", 0.5, code=2)


def test_chat_appends_latents(run, memory, tmp_path):
    monitor, last, each = (tmp_path / name for name in ("monitor.json", "last", "each"))
    lcc.Monitor(0.0).save(monitor)
    model = tiny_model("llama")
    for path, form in ((last, "last"), (each, "per_layer")):
        learned.save(path, FORMS[form](model, 2, "queries"), model_digests(model), {}, [])
    command = ("chat", memory, "--monitor", monitor, "--ratio", 1, "--latents")
    shown = " ".join(run(*command, last, input="Where does Mara live?\n\n").stdout.split())
    found = re.search(r"8 latents were appended, (\d+) tokens → (\d+)", shown)
    assert found
    assert int(found[2]) == int(found[1]) + 8
    assert "consolidator 'per_layer', which writes no embeddings: name one of the form 'last'" in " ".join(
        run(*command, each, code=2).output.split()
    )
    run(*command, "shipped", code=3)
    assert "give --monitor too" in run("chat", memory, "--latents", last, code=2).output


def test_demo_json(run, monkeypatch):
    result = run("demo", "--json", "--seed", 3, "--steps", 2, model=False)
    report = json.loads(result.stdout)
    assert report["scores"].keys() == {"full_text", "memory", "no_text", "memory_unseen_wording"}
    assert report["general"].keys() == {"full_text", "memory"}
    assert report["scores"]["full_text"] >= 0.97
    assert report["scores"]["no_text"] <= 0.15
    assert 7 * report["kv_bytes"]["memory"] < 1.5 * report["kv_bytes"]["full_text"]
    assert len(report["rows"]) == 35 * 3


def test_demo_table(run):
    shown = run("demo", "--steps", 1, model=False).stdout
    for word in ("full text", "memory", "nothing", "general queries", "time to first token", "KV cache"):
        assert word in shown


@pytest.fixture
def plain(tokenizer, text, tmp_path, monkeypatch):
    """A memory file of the text's own K and V."""
    path = tmp_path / "plain.lcc.safetensors"
    memory = plain_memory(tiny_model("llama"), tokenizer, text, monkeypatch)[0]
    replace(memory, questions=("Where does Mara live?",)).save(path)
    return path


def test_quantize(run, plain, tmp_path):
    output = tmp_path / "small"
    shown = run("quantize", plain, "-o", output, "--answers", 3).stdout
    for word in ("int8", "key_scale", "metadata", "quantised, general queries", "of 3 answers changed", "from float32"):
        assert word in " ".join(shown.replace("│", " ").split())
    result = run("quantize", plain, "-o", output, "--dtype", "fp8", "--answers", 3, "--json")
    summary = json.loads(result.stdout)
    assert json.loads(run("inspect", output, "--json", model=False).stdout) == {
        name: value for name, value in summary.items() if name != "path"
    }
    assert summary["dtype"] == "float8_e4m3fn"
    assert summary["quantization"]["general"].keys() == {"answers", "tokens", "kl", "changed"}
    assert summary["bytes"]["keys"] * 4 == lcc.Memory.load(plain).summary()["bytes"]["keys"]
    assert "self-asked" in run("inspect", output, model=False).stdout
    assert len(json.loads(run("ask", output, "Where?", "--json").stdout)["answers"]) == 1
    run("quantize", output, "-o", output, code=2)
    run("quantize", plain, "-o", output, "--dtype", "int3", code=2)
    run("quantize", plain, "-o", output, model=False, code=3)
    run("quantize", plain, "-o", tmp_path / "missing" / "m", code=4)


def test_export(run, plain, tmp_path):
    report = json.loads(run("export", plain, "--to", "cartridge", "-o", tmp_path / "a", "--json").stdout)
    assert report["path"] == str(tmp_path / "a" / "adapter_model.safetensors")
    assert (tmp_path / "a" / "adapter_config.json").exists()
    assert "cache.safetensors" in run("export", plain, "--to", "safetensors", "-o", tmp_path / "b").stdout
    run("export", plain, "--to", "gguf", "-o", tmp_path / "c", code=2)
    run("export", plain, "--to", "cartridge", "-o", tmp_path / "c", model=False, code=3)
    run("export", plain, "--to", "cartridge", "-o", plain / "below", code=4)


def test_exit_codes(run, memory, document, tmp_path):
    run("compile", tmp_path / "absent.txt", "-o", tmp_path / "m", code=2)
    run("compile", document, "-o", tmp_path / "m", "--ratio", 0.5, code=2)
    run("compile", document, "-o", tmp_path / "m", "--set", "rank", code=2)
    run("compile", document, "-o", tmp_path / "m", "--set", "rank=wide", code=2)
    run("compile", document, "-o", tmp_path / "missing" / "m", code=4)
    run("ask", tmp_path / "absent", "Where?", code=4)
    assert "[/red]" in run("ask", tmp_path / "absent[/red]", "Where?", code=4).output
    run("ask", memory, " ", code=2)
    run("verify", memory, "--model", tmp_path / "absent", model=False, code=2)
    # The embedded model did not compile this memory.
    assert "model config" in run("verify", memory, model=False, code=3).output.replace("\n", " ")
    memory.write_bytes(memory.read_bytes()[:-1])
    run("verify", memory, code=4)
    run("inspect", memory, model=False, code=4)


def test_binary_documents_are_refused(run, tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\x80\xfe\x00")
    assert "UTF-8" in run("compile", path, "-o", tmp_path / "m", code=2).output


def test_a_failed_save_loses_no_work(run, document, tmp_path, monkeypatch):
    def full(*_):
        raise lcc.MemoryFileError("no space left")

    command = ("compile", document, "-o", tmp_path / "m", "--ratio", 8, "--steps", 2, "--set", "batch=2")
    with monkeypatch.context() as patch:
        patch.setattr(lcc.Memory, "save", full)
        run(*command, code=4)
    from lcc.training import trainer as optimize

    monkeypatch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
    run(*command)
    assert lcc.Memory.load(tmp_path / "m").curve[-1]["step"] == 2
    assert not (tmp_path / "m.checkpoint").exists()


def test_interrupted_compile_says_how_to_go_on(run, document, tmp_path, monkeypatch):
    from lcc.training import trainer as optimize

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optimize, "step_loss", interrupt)
        result = run(
            "compile", document, "-o", tmp_path / "m", "--ratio", 8, "--steps", 2, "--set", "batch=2", code=130
        )
    assert "run the same command again" in result.output
    assert (tmp_path / "m.checkpoint" / "surrogate.safetensors").exists()
    run("compile", document, "-o", tmp_path / "m", "--ratio", 8, "--steps", 2, "--set", "batch=2")
    assert not (tmp_path / "m.checkpoint").exists()


def test_diverged_exit_code(run, document, tmp_path, monkeypatch):
    from lcc.training import trainer as optimize

    real = optimize.step_loss
    monkeypatch.setattr(optimize, "step_loss", lambda *arguments: real(*arguments) * float("inf"))
    run("compile", document, "-o", tmp_path / "m", "--ratio", 8, "--steps", 2, "--set", "batch=2", code=5)


def test_default_model_is_the_embedded_one():
    model, tokenizer = load.load_model(None)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert tokenizer.chat_template
