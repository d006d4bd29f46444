"""Where files go: never over an input, a device or a link, and over another's file only with --force."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading as load
from lcc.errors import MemoryFileError, MismatchError
from lcc.memory.exporters import TARGETS
from lcc.memory.quantization import quantized_output
from lcc.utils.outputs import Output, input_paths, make_folder, model_paths, names_folder, write_bytes
from lcc.utils.tensor_files import ours, save_tensors
from tests.support.plain_memories import plain_memory

PRECIOUS = b"the only copy"


def make_device(path):
    try:
        os.mknod(path, 0o020666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_socket(path):
    # Its name may be no longer than some hundred bytes.
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def make_link(path):
    target = path.with_name("target of the link")
    target.write_bytes(PRECIOUS)
    path.symlink_to(target)


NO_FILES = {
    "device": make_device,
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "link": make_link,
    "link to nothing": lambda path: path.symlink_to(path.with_name("absent")),
}
FOREIGN = {
    "text": lambda path: path.write_bytes(PRECIOUS),
    "empty file": lambda path: path.touch(),
    "tensors": lambda path: save_file({"keys": torch.ones(1)}, path),
    "checkpoint": lambda path: save_tensors(path, "lcc-state-1", {"keys": torch.ones(1)}, {"identity": {}}),
}


@pytest.fixture
def memory(llama, tokenizer, text, tmp_path, monkeypatch):
    """A memory, and its file."""
    made = replace(plain_memory(llama, tokenizer, text, monkeypatch)[0], source_sha256="ab")
    made.save(tmp_path / "memory.lcc.safetensors")
    return made


@pytest.fixture
def commands(memory, text, tmp_path, monkeypatch):
    """The commands that write, each with the file that it writes in its folder; none may come to load a model."""
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("a model is loaded"))
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "out").mkdir()
    out, path = str(tmp_path / "out"), str(tmp_path / "memory.lcc.safetensors")
    return {
        "compile": ("result", ["compile", str(tmp_path / "text.txt"), "-o", f"{out}/result"]),
        "update": ("result", ["update", path, str(tmp_path / "text.txt"), "-o", f"{out}/result"]),
        "quantize": ("result", ["quantize", path, "-o", f"{out}/result"]),
        "quantize into a folder": ("memory.lcc.safetensors", ["quantize", path, "-o", f"{out}/"]),
        "cartridge": ("adapter_model.safetensors", ["export", path, "--to", "cartridge", "-o", out]),
        "its config": ("adapter_config.json", ["export", path, "--to", "cartridge", "-o", out]),
        "cache": ("cache.safetensors", ["export", path, "--to", "safetensors", "-o", out]),
        "eval": ("results.jsonl", ["eval", "fiction", "-o", out]),
    }


COMMANDS = ("compile", "update", "quantize", "quantize into a folder", "cartridge", "its config", "cache", "eval")


def run(command, code, *more):
    result = CliRunner().invoke(cli.app, [*command, *more])
    assert result.exit_code == code, result.output
    return result.output


def what_is_there(path):
    found = path.lstat()
    return found.st_mode, found.st_ino, path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["plain", "forced"])
@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_file_is_never_replaced(name, kind, force, commands, tmp_path):
    file, command = commands[name]
    target = tmp_path / "out" / file
    NO_FILES[kind](target)
    before = what_is_there(target)
    shown = run(command, 4, *(force if name != "eval" else ()))
    assert str(target) in shown
    assert kind.split()[0] in shown
    if kind == "link":
        assert str(tmp_path / "out" / "target of the link") in shown
    assert what_is_there(target) == before


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", COMMANDS)
def test_anothers_file_is_replaced_only_by_force(name, kind, commands, tmp_path):
    target, command = tmp_path / "out" / commands[name][0], commands[name][1]
    FOREIGN[kind](target)
    before = what_is_there(target)
    shown = run(command, 4)
    assert str(target) in shown
    assert "another" in shown
    if name != "eval":
        assert "--force" in shown
        with pytest.raises(pytest.fail.Exception, match="a model is loaded"):
            CliRunner().invoke(cli.app, [*command, "--force"], catch_exceptions=False)
    assert what_is_there(target) == before


INPUTS = {
    "itself": lambda source, target: target.unlink(missing_ok=True) or os.link(source, target),
    "its link": lambda source, target: target.symlink_to(source),
}


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["plain", "forced"])
@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize(
    ("name", "source", "more"),
    [("compile", "text.txt", ()), ("compile", "q.jsonl", ("--questions",)), ("compile", "q.jsonl", ("--queries",)),
     ("quantize", "memory.lcc.safetensors", ()), ("quantize", "q.jsonl", ("--queries",)),
     ("quantize into a folder", "memory.lcc.safetensors", ()), ("cartridge", "memory.lcc.safetensors", ()),
     ("its config", "memory.lcc.safetensors", ()), ("cache", "memory.lcc.safetensors", ())],
)  # fmt: skip
def test_an_input_is_never_replaced(name, source, more, how, force, commands, tmp_path):
    file, command = commands[name]
    read, target = tmp_path / source, tmp_path / "out" / file
    if not read.exists():
        read.write_text('{"question": "Where?", "query": "Say: dog."}\n')
    INPUTS[how](read, target)
    before = what_is_there(read)
    run(command, 4, *(part for option in more for part in (option, str(read))), *force)
    assert what_is_there(read) == before


def test_standard_input_is_an_input(tmp_path, text):
    note = tmp_path / "note.txt"
    note.write_text(text)
    kept = os.dup(0)
    try:
        with note.open() as stdin:
            os.dup2(stdin.fileno(), 0)
        with pytest.raises(MemoryFileError, match="read by this very command"):
            Output(note, input_paths("-"), force=True).check()
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.mark.parametrize("name", ["compile", "cartridge", "eval"])
@pytest.mark.parametrize("kind", [*NO_FILES, *FOREIGN])
def test_what_is_no_folder_is_never_replaced(name, kind, commands, tmp_path):
    target = tmp_path / "folder"
    (NO_FILES | FOREIGN)[kind](target)
    before = what_is_there(target)
    *command, _ = commands[name][1]
    shown = run([*command, f"{target}/"], 4)
    assert str(target) in shown
    assert what_is_there(target) == before


def test_a_link_to_a_folder_is_named(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(MemoryFileError, match=f"link is a link to {tmp_path / 'real'}: name that"):
        make_folder(tmp_path / "link")
    with pytest.raises(MemoryFileError, match="is a link"):
        lcc.remove_checkpoint(tmp_path / "link")


def test_folders_are_told_by_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert all(map(names_folder, ("new/", "new/deeper/", "there", "there/", ".", "..", "new/.")))
    assert not any(map(names_folder, ("new", "there/new", "new.d")))


@pytest.mark.parametrize("to", sorted({*TARGETS} - {"peft"}))
def test_an_export_replaces_an_earlier_one_alone(to, llama, memory, tmp_path):
    first = lcc.export(llama, memory, tmp_path / "out", to)
    assert lcc.export(llama, memory, tmp_path / "out", to) == first
    save_file({"lora": torch.ones(2)}, first)
    for force in (False, True):
        if force:
            lcc.export(llama, memory, tmp_path / "out", to, force=True)
        else:
            with pytest.raises(MemoryFileError, match=r"not one of this package's|no sequence state"):
                lcc.export(llama, memory, tmp_path / "out", to)


def test_a_quantised_memory_replaces_quantised_ones_of_its_text(memory, llama, tokenizer, tmp_path):
    small = lcc.quantize(memory, "int8", llama, tokenizer, answers=1, max_new_tokens=1)
    target = tmp_path / "small"
    output = quantized_output(target, memory)
    small.save(output)
    small.save(output)
    for other in (memory, replace(small, source_sha256="cd")):
        other.save(target)
        with pytest.raises(MismatchError, match="no quantised memory of the same text"):
            small.save(output)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    target, real = tmp_path / "result", os.fsync

    def late(handle):
        target.write_bytes(PRECIOUS)
        real(handle)

    monkeypatch.setattr(os, "fsync", late)
    with pytest.raises(MemoryFileError, match="is there already"):
        write_bytes(Output(target), b"mine")
    assert target.read_bytes() == PRECIOUS
    assert os.listdir(tmp_path) == ["result"]


def test_ours_are_told_by_format_and_metadata(tmp_path):
    target = tmp_path / "file"
    save_tensors(target, "test-1", {"a": torch.ones(1)}, {"number": 1})
    Output(target, ours=ours("test-1", number=1)).check()
    with pytest.raises(MismatchError, match="differs in number"):
        Output(target, ours=ours("test-1", number=2)).check()
    with pytest.raises(MemoryFileError, match="format"):
        Output(target, ours=ours("test-2")).check()


def test_a_memory_is_saved_over_files_alone(memory, tmp_path):
    (tmp_path / "old").write_bytes(PRECIOUS)
    memory.save(tmp_path / "old")
    assert lcc.Memory.load(tmp_path / "old").source_sha256 == "ab"
    for kind, make in NO_FILES.items():
        target = Path(tmp_path, kind)
        make(target)
        before = what_is_there(target)
        with pytest.raises(MemoryFileError, match=kind.split()[0]):
            memory.save(target)
        assert what_is_there(target) == before


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(MemoryFileError, match="may not read and write it"):
        make_folder(tmp_path / "locked")
    with pytest.raises(MemoryFileError, match="read-only"):
        Output(tmp_path / "locked" / "file").check()


def test_a_models_own_files_are_inputs(commands, memory, llama, tokenizer, tmp_path):
    """Whatever the command reads is never replaced, the model's folder included; a memory may lie beside the model."""
    model = tmp_path / "model"
    llama.save_pretrained(model)
    tokenizer.save_pretrained(model)
    files = {path: path.read_bytes() for path in model.iterdir()}
    path = str(tmp_path / "memory.lcc.safetensors")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        for command in (["compile", str(tmp_path / "text.txt")], ["quantize", path]):
            said = run([*command, "-o", str(model / name), "--model", str(model)], 4, "--force")
            assert "read by this very command" in " ".join(said.split())
    for target in [name for name, target in TARGETS.items() if target.in_folder]:
        run(["export", path, "--to", target, "-o", str(model), "--model", str(model)], 4, "--force")
    assert {path: path.read_bytes() for path in model.iterdir()} == files
    memory.save(model / "m.lcc.safetensors")
    assert model / "m.lcc.safetensors" not in model_paths(str(model))
    assert model_paths("owner/name") == model_paths(None) == ()


def test_an_empty_name_is_none(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    run(["compile", str(tmp_path / "text.txt"), "-o", ""], 2)
    run(["quantize", str(tmp_path / "memory.lcc.safetensors"), "-o", ""], 4)
    assert sorted(tmp_path.iterdir()) == before
