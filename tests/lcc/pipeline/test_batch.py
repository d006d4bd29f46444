"""Many documents into a folder: what is done is skipped, what fails is reported, nothing is compiled twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.memory.store import FileStore, checkpoint_beside
from lcc.pipeline import compile_to
from lcc.utils.outputs import Output
from tests.support.tiny_models import tiny_model


def statuses(outcomes):
    return [outcome.status for outcome in outcomes]


@pytest.fixture
def compiled(monkeypatch):
    """The texts that were compiled, in their order."""
    real, seen = compile_to.make_memory, []

    def spy(model, tokenizer, text, *rest):
        seen.append(text)
        return real(model, tokenizer, text, *rest)

    monkeypatch.setattr(compile_to, "make_memory", spy)
    return seen


def test_errors_do_not_stop_the_rest_and_done_is_skipped(compile_all, compiled, sources, tmp_path, llama, tokenizer):
    outcomes = compile_all()
    assert statuses(outcomes) == ["compiled", "compiled", "failed"]
    assert "too few for ratio" in outcomes[2].error
    names = sorted(path.name for path in (tmp_path / "memories").iterdir())
    assert names == ["first.lcc.safetensors", "second.lcc.safetensors"]
    lcc.Memory.load(outcomes[0].output).verify(llama, tokenizer)
    compiled.clear()
    sources[2].write_text(sources[0].read_text())
    assert statuses(compile_all()) == ["skipped", "skipped", "compiled"]
    assert compiled == [sources[0].read_text()]


def test_what_differs_is_refused_unless_forced(compile_all, compiled, sources):
    compile_all()
    sources[1].write_text(sources[0].read_text())
    outcomes = compile_all(seed=1)
    assert statuses(outcomes)[:2] == ["failed", "failed"]
    assert "differs in seed: compile it again with --force" in outcomes[0].error
    assert "differs in text, seed" in outcomes[1].error
    compiled.clear()
    assert statuses(compile_all(seed=1, force=True))[:2] == ["compiled", "compiled"]
    assert statuses(compile_all(seed=1, force=True))[:2] == ["skipped", "skipped"]
    assert len(compiled) == 4  # the short one is tried, and fails, both times
    assert lcc.Memory.load(outcomes[0].output).settings["seed"] == 1


def test_another_model_is_a_mismatch_and_another_dtype_of_its_numbers_is_none(compile_all, llama):
    compile_all()
    llama.double()
    assert statuses(compile_all())[:2] == ["skipped", "skipped"]
    with torch.no_grad():
        llama.lm_head.weight[3, 5] += 1
    assert "differs in model_weights" in compile_all()[0].error


def test_a_damaged_memory_is_refused_unless_forced(compile_all):
    outcomes = compile_all()
    with open(outcomes[0].output, "r+b") as file:
        file.truncate(100)
    assert "truncated" in compile_all()[0].error
    assert statuses(compile_all(force=True))[:2] == ["compiled", "skipped"]


def test_force_begins_an_unfinished_document_anew(compile_all, monkeypatch):
    from lcc.training import trainer as optimize

    with monkeypatch.context() as patch:
        patch.setattr(optimize, "step_loss", lambda *_: 1 / 0)
        assert statuses(compile_all()) == ["failed"] * 3
    outcomes = compile_all(seed=1)
    assert "differs in seed" in outcomes[0].error
    assert "to start afresh, add --force" in outcomes[0].error
    outcomes = compile_all(seed=1, force=True)
    assert statuses(outcomes)[:2] == ["compiled", "compiled"]
    assert not checkpoint_beside(outcomes[0].output).exists()


def test_a_claimed_document_is_left_alone(compile_all, compiled, tmp_path):
    output = tmp_path / "memories" / "first.lcc.safetensors"
    output.parent.mkdir()
    with FileStore(Output.of).claim(str(output)) as claim:
        assert claim
        assert statuses(compile_all())[:2] == ["locked", "compiled"]
    assert statuses(compile_all())[:2] == ["compiled", "skipped"]
    assert not list(output.parent.glob("*.lock"))


HOLD = """
import sys, time, filelock
with filelock.FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_claim_of_a_killed_process_is_void(compile_all, tmp_path):
    lock = tmp_path / "memories" / "first.lcc.safetensors.lock"
    lock.parent.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert statuses(compile_all())[:2] == ["locked", "compiled"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert statuses(compile_all())[:2] == ["compiled", "skipped"]


def test_a_crash_leaves_the_queue_to_go_on_from(compile_all, compiled, monkeypatch, tmp_path):
    from lcc.training import trainer as optimize

    real, calls = optimize.step_loss, iter(range(100))

    def interrupted(*arguments):
        if next(calls) == 6:  # the third step of the second document
            raise KeyboardInterrupt
        return real(*arguments)

    whole = lcc.Memory.load(compile_all()[1].output)
    for path in (tmp_path / "memories").glob("*.lcc.safetensors"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(optimize, "step_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compile_all()
    assert (tmp_path / "memories" / "second.lcc.safetensors.checkpoint" / "state.safetensors").exists()
    outcomes = compile_all()
    assert statuses(outcomes)[:2] == ["skipped", "compiled"]
    assert torch.equal(lcc.Memory.load(outcomes[1].output).kv.keys, whole.kv.keys)


def test_leftovers_of_a_killed_writer_are_swept(compile_all, tmp_path):
    folder = tmp_path / "memories"
    (folder / "first.lcc.safetensors.checkpoint").mkdir(parents=True)
    (folder / "first.lcc.safetensors.checkpoint" / ".state.safetensors.0123abcd.partial").touch()
    (folder / ".first.lcc.safetensors.89abcdef.partial").touch()
    (folder / ".first.lcc.safetensors.mine").touch()
    compile_all()
    names = {path.name for path in folder.iterdir()}
    assert {".first.lcc.safetensors.mine", "first.lcc.safetensors", "second.lcc.safetensors"} <= names
    assert not any("partial" in name or name.startswith("first.lcc.safetensors.") for name in names)


def test_one_shot_questions_and_queries_serve_every_document(compile_all, tmp_path):
    one_shot = {"queries": (f"Say: {n}." for n in range(40)), "questions": iter(["Where does Mara live?"])}
    outcomes = compile_all(**one_shot, surrogates=tmp_path / "shared", checkpoint_every=2)
    assert len(list((tmp_path / "shared").iterdir())) == 2
    assert statuses(outcomes) == ["compiled", "compiled", "failed"]
    assert "too few for ratio" in outcomes[2].error
    for outcome in outcomes[:2]:
        assert lcc.Memory.load(outcome.output).certificate["questions"]["count"] == 1


def test_hostile_calls(llama, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(lcc.InputError, match=r"a/x\.txt and b/x\.md would both become"):
        lcc.compile_documents(llama, tokenizer, ["a/x.txt", "b/x.md"], tmp_path)
    with pytest.raises(lcc.InputError, match="no documents"):
        lcc.compile_documents(llama, tokenizer, [], tmp_path)
    with pytest.raises(lcc.MemoryFileError, match=r"cannot make the folder .*a file has that name"):
        lcc.compile_documents(llama, tokenizer, ["x.txt"], tmp_path / "file")
    with pytest.raises(lcc.InputError, match="unknown setting"):
        lcc.compile_documents(llama, tokenizer, ["x.txt"], tmp_path, stepz=3, progress=False)


SMALL = ["--ratio", "8", "--steps", "1", "--set", "batch=2", "--set", "general_queries=4", "--set",
         "self_study_questions=0"]  # fmt: skip


@pytest.fixture
def command(tokenizer, sources, tmp_path):
    """``lcc compile`` of all sources into a folder, on a tiny model."""
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = ["-o", str(tmp_path / "memories"), "--model", str(tmp_path / "model")]
    return ["compile", *map(str, sources), *folder, *SMALL]


def test_command_line(command, sources):
    first = CliRunner().invoke(cli.app, command)
    assert first.exit_code == 1
    assert "2 compiled, 1 failed" in first.stdout
    again = CliRunner().invoke(cli.app, [*command, "--json"])
    assert again.exit_code == 1
    rows = json.loads(again.stdout)["documents"]
    assert [row["status"] for row in rows] == ["skipped", "skipped", "failed"]
    assert [row["source"] for row in rows] == list(map(str, sources))
    sources[2].write_text(sources[0].read_text())
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    assert "standard input" in CliRunner().invoke(cli.app, [*command, "-"]).output


def test_ray_gives_the_same(command, sources):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'lcc-kernels[ray]'")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    ray_command = [sys.executable, "-m", "lcc", *command, "--ray", "local", "--json"]
    process = subprocess.run(ray_command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1, process.stderr
    rows = json.loads(process.stdout)["documents"]
    assert [row["status"] for row in rows] == ["compiled", "compiled", "failed"]
    # What Ray compiled is what this process would have: it is skipped as done.
    assert "2 skipped, 1 failed" in CliRunner().invoke(cli.app, command).stdout


def test_ray_is_asked_for_by_name(command):
    try:
        import ray  # noqa: F401
    except ImportError:
        result = CliRunner().invoke(cli.app, [*command, "--ray", "local"])
        assert result.exit_code == 2
        assert "lcc-kernels[ray]" in result.output
    else:
        pytest.skip("ray is installed")
