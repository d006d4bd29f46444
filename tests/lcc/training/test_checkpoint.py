"""Checkpoints: of diverged, stopped and damaged runs, and what another run takes from them."""

from __future__ import annotations

import pytest

import lcc
from lcc.data.cache import FORMAT as DATA
from lcc.training.checkpoint import FORMAT as STATE
from lcc.utils.tensor_files import load_tensors, save_tensors
from tests.lcc.pipeline.test_compile import fail_at, same
from tests.support.tiny_models import compile_leaving_checkpoint


@pytest.fixture
def job(llama, tokenizer, text, fast):
    """Compile with the fast settings, overridden."""

    def run(**overrides):
        return lcc.compile(llama, tokenizer, text, **(fast | overrides))

    return run


def diverge(job, monkeypatch, folder, **overrides):
    """A run that has written its state and diverges after it."""
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda value: value * float("inf"))
        with pytest.raises(lcc.DivergedError, match="lower learning_rate and buffer_learning_rate and compile again"):
            job(checkpoint=folder, checkpoint_every=1, **overrides)


@pytest.mark.parametrize(
    "advice", [{"learning_rate": 1e-3}, {"buffer_learning_rate": 0.0, "momentum": 0.5}, {"optimizer": "adamw"}]
)
def test_what_a_diverged_run_is_told_works(advice, job, tmp_path, monkeypatch, data_made):
    diverge(job, monkeypatch, tmp_path / "run")
    again = job(checkpoint=tmp_path / "run", **advice)
    assert len(data_made) == 1
    assert same(again, job(**advice))
    assert not (tmp_path / "run").exists()


def test_a_search_that_diverged_is_begun_anew(job, tmp_path, monkeypatch, llama, tokenizer, text, fast):
    folder = tmp_path / "run"
    compile_leaving_checkpoint(llama, tokenizer, text, folder / "ratio-32", **fast)
    diverge(job, monkeypatch, folder / "ratio-16", ratio=16)
    assert same(job(checkpoint=folder / "ratio-32", learning_rate=1e-3), job(learning_rate=1e-3))


def stop(job, monkeypatch, folder):
    """A run that is stopped after it has written its state."""
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job(checkpoint=folder, checkpoint_every=1)


def test_the_state_of_another_run_is_begun_anew_only_when_asked_to(job, tmp_path, monkeypatch, data_made):
    for other in ({"learning_rate": 1e-3}, {"seed": 1}):
        stop(job, monkeypatch, tmp_path / "run")
        with pytest.raises(lcc.MismatchError, match=f"differs in {next(iter(other))}: .*to start afresh, add --force"):
            job(checkpoint=tmp_path / "run", **other)
        data_made.clear()
        again = job(checkpoint=tmp_path / "run", restart=True, **other)
        assert len(data_made) == ("seed" in other)
        assert same(again, job(**other))


@pytest.mark.parametrize("name", ["state", "surrogate"])
def test_a_damaged_checkpoint_is_begun_anew_when_asked_to(name, job, tmp_path, monkeypatch):
    stop(job, monkeypatch, tmp_path / "run")
    file = tmp_path / "run" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(lcc.MemoryFileError, match=r"truncated.*add --force"):
        job(checkpoint=tmp_path / "run")
    assert same(job(checkpoint=tmp_path / "run", restart=True), job())


@pytest.mark.parametrize(("name", "kind"), [("state", STATE), ("surrogate", DATA)])
def test_a_checkpoint_that_lacks_a_part_is_refused(name, kind, job, tmp_path, monkeypatch):
    stop(job, monkeypatch, tmp_path / "run")
    file = tmp_path / "run" / f"{name}.safetensors"
    tensors, metadata = load_tensors(file, kind)
    first = dict([next(iter(tensors.items()))])
    for some, known in ((tensors, {}), (tensors, {"identity": metadata["identity"]}), (first, metadata)):
        save_tensors(file, kind, some, known)
        with pytest.raises(lcc.MemoryFileError, match=f"{file.parent}.* is no checkpoint to go on from"):
            job(checkpoint=tmp_path / "run")


@pytest.mark.parametrize("what", ["held-out KL", "largest of the keys"])
def test_a_run_that_ends_in_nan_has_diverged(what, job, tmp_path):
    rate = {"learning_rate": 1e25, "steps": 1, "held_out": 0.3 if what == "held-out KL" else 0.0}
    with pytest.raises(lcc.DivergedError, match=f"the {what} became"):
        job(checkpoint=tmp_path / "run", **rate)
    calm = {**rate, "learning_rate": 1e-3}
    assert same(job(checkpoint=tmp_path / "run", **calm), job(**calm))


def test_files_of_others_in_the_folder_stay(job, tmp_path):
    folder = tmp_path / "run"
    (folder / "ratio-mine").mkdir(parents=True)
    others = [
        "surrogate-mine.safetensors", "notes.txt", ".state.safetensors.mine.partial", "ratio-mine/state.safetensors",
        "ratio-mine/surrogate.safetensors",
    ]  # fmt: skip
    for name in others:
        (folder / name).write_bytes(b"the only copy")
    job(checkpoint=folder)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(others)
