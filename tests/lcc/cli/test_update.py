"""``lcc update``: one file from another, in place or not, and the delta of the two."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading as load
from lcc.memory.keys import write_key
from lcc.memory.store import FileStore, checkpoint_beside
from lcc.pipeline.options import Run
from lcc.pipeline.update import update_options
from lcc.pipeline.update_to import update_output, update_to
from lcc.synthetic.people import document
from lcc.utils.progress import Reporter

MORE = document(random.Random(8), people=2, attributes=3).text


@pytest.fixture
def old(llama, tokenizer, text, fast, once):
    return once("old", lambda: lcc.compile(llama, tokenizer, text, certify=False, **fast))


@pytest.fixture
def command(llama, tokenizer, old, tmp_path, monkeypatch):
    """``lcc update``, of the file ``old`` with the text ``more``, and what it printed."""
    monkeypatch.setattr(load, "load_model", lambda model, *_: (llama, tokenizer))
    old.save(tmp_path / "old")
    (tmp_path / "more").write_text(MORE)
    few = "steps=3 batch=4 general_queries=6 self_study_questions=2 self_study_temperature=5.0 self_study_piece=10 "
    few += "self_study_hard=0 self_study_follow_ups=0 max_response_tokens=8"
    settings = [word for pair in few.split() for word in ("--set", pair)]

    def run(output="new", *more: str, code: int = 0):
        words = ["update", str(tmp_path / "old"), str(tmp_path / "more"), "-o", str(tmp_path / output), "--no-certify"]
        result = CliRunner().invoke(cli.app, [*words, *settings, *more])
        assert result.exit_code == code, result.output
        return result

    return run


def test_the_command_writes_once(command, old, tmp_path):
    before = (tmp_path / "old").read_bytes()
    shown = json.loads(command("new", "--json", "--log-file", str(tmp_path / "log")).stdout)
    assert shown["update"]["growing"] is True
    assert shown["buffer_tokens"] > old.buffer_tokens
    assert "compiling" in (tmp_path / "log").read_text()
    written = (tmp_path / "new").read_bytes()
    assert "skipped" in command("new").stderr
    assert "growing" in command("new", "--constant", code=3).stderr
    assert (tmp_path / "new").read_bytes() == written
    command("new", "--constant", "--force")
    (tmp_path / "other").write_text("no memory")
    assert "is truncated or no safetensors file" in " ".join(command("other", code=4).stderr.split())
    command("other", "--force")
    assert lcc.Memory.load(tmp_path / "new").buffer_tokens == old.buffer_tokens
    assert (tmp_path / "old").read_bytes() == before
    assert not checkpoint_beside(tmp_path / "new").exists()
    assert "took in last" in CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "new")]).output


def test_the_memorys_own_file_is_replaced_with_force_alone(command, old, tmp_path):
    assert "read by this very command" in command("old", code=4).stderr
    assert lcc.Memory.load(tmp_path / "old").digest == old.digest
    command("old", "--force")
    new = lcc.Memory.load(tmp_path / "old")
    assert new.lineage[0]["digest"] == old.digest
    assert "skipped" in command("old", "--force").stderr
    assert lcc.Memory.load(tmp_path / "old").digest == new.digest


def test_an_update_that_came_second_is_refused(llama, tokenizer, old, fast, tmp_path):
    """Two processes update one file in place: the second would lose what the first one took in."""
    path = tmp_path / "old"
    old.save(path)
    del fast["progress"]
    options = update_options(path, certify=False, **fast)
    replace(old, payload=type(old.payload)(old.kv.head(3))).save(path)
    output = update_output(path, path, MORE, options, force=True)
    with pytest.raises(lcc.MemoryFileError, match="replaced meanwhile"):
        update_to(llama, tokenizer, path, MORE, output, options, Run(), Reporter(False))
    assert lcc.Memory.load(path).buffer_tokens == 3


def test_the_delta_of_an_update(command, old, tmp_path):
    told = json.loads(command("new", "--delta", str(tmp_path / "d"), "--json").stdout)
    assert told["delta"] == str(tmp_path / "d")
    new = lcc.Memory.load(tmp_path / "new")
    assert lcc.Delta.load(tmp_path / "d").makes(new)
    assert not lcc.Delta.load(tmp_path / "d").makes(old)
    written = (tmp_path / "d").read_bytes()
    (tmp_path / "d").unlink()
    # The update is done, and its parent is there: the delta is made again.
    assert "skipped" in command("new", "--delta", str(tmp_path / "d")).stderr
    assert (tmp_path / "d").read_bytes() == written


def test_a_delta_is_written_before_its_parent_is_replaced(command, old, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FileStore, "put", lambda *_: 1 / 0)
        command("old", "--force", "--delta", str(tmp_path / "d"), code=1)
    assert lcc.Memory.load(tmp_path / "old").digest == old.digest
    command("old", "--force", "--delta", str(tmp_path / "d"))
    new = lcc.Memory.load(tmp_path / "old")
    assert lcc.Delta.load(tmp_path / "d").apply(old).metadata() == new.metadata()
    told = json.loads(command("old", "--force", "--delta", str(tmp_path / "d"), "--json").stdout)
    assert told["delta"] == str(tmp_path / "d")
    lost = command("old", "--force", "--delta", str(tmp_path / "e"), code=4)
    assert "the old memory is gone: send the new memory itself" in " ".join(lost.stderr.split())
    assert not (tmp_path / "e").exists()


def test_a_delta_that_cannot_be_written_leaves_the_old_memory(command, old, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    real = lcc.Delta.between

    def between(*pair):
        folder.rmdir()
        return real(*pair)

    with monkeypatch.context() as patch:
        patch.setattr(lcc.Delta, "between", between)
        assert "missing" in command("old", "--force", "--delta", str(folder / "d"), code=4).stderr
    assert lcc.Memory.load(tmp_path / "old").digest == old.digest


def test_passages_are_cut_out_of_the_new_text(command, old, tmp_path):
    secret = "Mara lives in Tarn."
    (tmp_path / "more").write_text(f"{MORE} {secret}")
    replace(old, redacted=2).save(tmp_path / "old")
    new = lcc.Memory.load(str(json.loads(command("new", "--redact", secret, "--json").stdout)["path"]))
    assert new.redacted == 3
    assert "skipped" in command("new", "--redact", secret).stderr
    assert "differ" in command("new", code=3).stderr


def test_a_signature_that_goes_is_told_of(command, old, tmp_path):
    private, _ = write_key(tmp_path / "key")
    lcc.sign(tmp_path / "old", private, detached=True)
    assert "its signature is gone" in " ".join(command("old", "--force").output.split())
    assert "signature is gone" not in command("old", "--force").output


def test_one_file_for_the_memory_and_its_delta_is_refused_before_any_work(command, tmp_path, data_made):
    refused = command("new", "--delta", str(tmp_path / "." / "new"), code=2)
    assert "name two files" in " ".join(refused.stderr.split())
    assert not data_made
