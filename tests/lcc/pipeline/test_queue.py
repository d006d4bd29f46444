"""A queue of documents goes on past whatever is in the way of one, and that stays as it was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import lcc
from lcc.pipeline import compile_to
from tests.lcc.pipeline.test_batch import statuses


def damaged_state(output):
    """A checkpoint that is no file of this package's."""
    checkpoint(output).mkdir()
    (checkpoint(output) / "surrogate.safetensors").write_text("notes")


def nested_memory(output):
    save_file({"keys": torch.ones(1)}, output, {"lcc": "[" * 200_000})


def of(output, suffix):
    return output.with_name(output.name + suffix)


def checkpoint(output):
    return of(output, ".checkpoint")


# What is in the way of the first document's memory.
IN_THE_WAY = {
    "a link for a checkpoint": lambda output: checkpoint(output).symlink_to(output.parent),
    "a file for a checkpoint": lambda output: checkpoint(output).touch(),
    "a damaged checkpoint": damaged_state,
    "a folder for a checkpoint's file": lambda output: os.makedirs(checkpoint(output) / "surrogate.safetensors"),
    "a folder for a lock": lambda output: of(output, ".lock").mkdir(),
    "a link for a lock": lambda output: of(output, ".lock").symlink_to(output.parent / "absent"),
    "a text for a lock": lambda output: of(output, ".lock").write_text("poetry"),
    "a folder for a memory": lambda output: output.mkdir(),
    "a link for a memory": lambda output: output.symlink_to(output.parent / "absent"),
    "a FIFO for a memory": os.mkfifo,
    "a nested memory": nested_memory,
    "a text for a memory": lambda output: output.write_text("notes"),
}


def listing(folder):
    return {path: path.lstat().st_mode for path in folder.rglob("*") if "second" not in path.name}


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_is_in_the_way_of_one_does_not_stop_the_rest(what, compile_all, tmp_path):
    output = tmp_path / "memories" / "first.lcc.safetensors"
    output.parent.mkdir()
    IN_THE_WAY[what](output)
    before = listing(tmp_path)
    outcomes = compile_all(steps=1)
    assert statuses(outcomes) == ["failed", "compiled", "failed"]
    assert str(output) in outcomes[0].error or "nested" in what
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(28, "full"), RecursionError("too deep"), KeyError("x"), MemoryError()])
def test_no_error_of_one_stops_the_rest(error, compile_all, monkeypatch, sources):
    real = compile_to.make_memory

    def failing(model, tokenizer, text, *rest):
        if text == sources[0].read_text():
            raise error
        return real(model, tokenizer, text, *rest)

    monkeypatch.setattr(compile_to, "make_memory", failing)
    outcomes = compile_all(steps=1)
    assert statuses(outcomes) == ["failed", "compiled", "failed"]
    assert type(error).__name__ in outcomes[0].error


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can become another user")
def test_what_is_of_another_user_does_not_stop_the_rest(llama, tokenizer, fast, text):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        theirs, locked, mine = (Path(folder, f"{name}.txt") for name in ("theirs", "locked", "mine"))
        for path in (theirs, locked, mine):
            path.write_text(text)
            path.chmod(0o644)
        checkpoint(Path(folder, "theirs.lcc.safetensors")).mkdir(mode=0o700)
        of(Path(folder, "locked.lcc.safetensors"), ".lock").touch(mode=0o600)
        os.seteuid(65534)
        try:
            outcomes = lcc.compile_documents(llama, tokenizer, [theirs, locked, mine], folder, **fast | {"steps": 1})
            with pytest.raises(lcc.MemoryFileError, match="Permission denied"):
                lcc.remove_checkpoint(checkpoint(Path(folder, "theirs.lcc.safetensors")))
        finally:
            os.seteuid(0)
    assert statuses(outcomes) == ["failed", "failed", "compiled"]
    assert all("Permission denied" in outcome.error for outcome in outcomes[:2])


def test_a_document_is_never_replaced(llama, tokenizer, fast, text, tmp_path):
    documents_there = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in documents_there:
        path.write_text(text)
    (tmp_path / "out").mkdir()
    os.link(documents_there[1], tmp_path / "out" / "a.lcc.safetensors")
    for force in (False, True):
        first, _ = lcc.compile_documents(
            llama, tokenizer, documents_there, tmp_path / "out", force=force, **fast | {"steps": 1}
        )
        assert f"is read by this very command, as {documents_there[1]}" in first.error
    assert documents_there[1].read_text() == text
