"""Signatures: every part of a signed file that is tampered with, its digest written anew, and every wrong key."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli import loading
from lcc.memory import signing
from lcc.memory.file_format import FORMAT
from lcc.memory.keys import write_key
from lcc.memory.signing import IN_HEADER, is_signed
from lcc.serving import certifying
from tests.support.forge import forge, places, replaced
from tests.support.plain_memories import plain_memory

runner = CliRunner()


@pytest.fixture
def memory(llama, tokenizer, text, monkeypatch):
    memory = plain_memory(llama, tokenizer, text, monkeypatch)[0]
    memory = replace(memory, settings={"steps": 3}, questions=("Where?",))
    return replace(memory, **memory.succeeded_by("update", {"ratio": 8}))


@pytest.fixture
def pair(tmp_path):
    return write_key(tmp_path / "key")


@pytest.fixture
def signed(memory, pair, tmp_path):
    path = tmp_path / "m"
    memory.save(path)
    assert lcc.sign(path, pair[0]) == path
    return path


def name_of(public):
    return serialization.load_pem_public_key(public.read_bytes()).public_bytes_raw().hex()


def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def forged(path, tensors, metadata, kind=FORMAT):
    """The file anew with these, its digest right and its signature kept, as whoever may write files can."""
    kept = header(path)[IN_HEADER]
    forge(path, tensors, metadata, kind)
    save_file({name: each.contiguous() for name, each in tensors.items()}, path, header(path) | {IN_HEADER: kept})


def test_a_signed_file_is_the_same_memory(memory, signed, pair):
    assert lcc.verify_signature(signed, [pair[1]]) == [name_of(pair[1])]
    loaded = lcc.Memory.load(signed, trusted=[pair[1].read_bytes()])
    assert loaded.metadata() == json.loads(json.dumps(loaded.metadata())) | {
        name: getattr(loaded, name) for name in ("prefix_ids", "questions")
    }
    assert torch.equal(loaded.kv.keys, memory.kv.keys)
    assert lcc.Memory.load(signed).digest == memory.digest


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("kind", ["object", "bytes", "path", "text"])
def test_keys_of_every_kind(memory, tmp_path, pair, detached, kind):
    memory.save(tmp_path / "m")
    private, public = (path.read_bytes() for path in pair)
    loaded = serialization.load_pem_private_key(private, None)
    kinds = {"object": (loaded, loaded.public_key()), "bytes": (private, public), "path": pair,
             "text": tuple(map(str, pair))}  # fmt: skip
    before = (tmp_path / "m").read_bytes()
    target = lcc.sign(tmp_path / "m", kinds[kind][0], detached=detached)
    assert (target.name == "m.sig") == detached
    assert ((tmp_path / "m").read_bytes() == before) == detached
    assert lcc.Memory.load(tmp_path / "m", trusted=[kinds[kind][1]]).digest == memory.digest


def test_every_field_is_signed(memory, signed, pair):
    """Whoever writes the file anew, with the right digest, is found out, whatever he changes."""
    metadata = json.loads(json.dumps(memory.metadata()))
    for way in places(metadata)[1:]:
        changed = replaced(json.loads(json.dumps(metadata)), way, "tampered")
        forged(signed, memory.tensors(), changed)
        with pytest.raises(lcc.MemoryFileError, match=f"changed after {name_of(pair[1])} signed it"):
            lcc.Memory.load(signed, trusted=[pair[1]])
    forged(signed, memory.tensors(), metadata)
    lcc.Memory.load(signed, trusted=[pair[1]])


@pytest.mark.parametrize("name", ["keys", "values"])
def test_every_tensor_is_signed(memory, signed, pair, name):
    tensors = {**memory.tensors()}
    tensors[name] = tensors[name].clone()
    tensors[name].view(torch.int32)[-1, -1, -1, -1] ^= 1
    forged(signed, tensors, json.loads(json.dumps(memory.metadata())))
    assert lcc.Memory.load(signed).digest != memory.digest
    with pytest.raises(lcc.MemoryFileError, match="changed after"):
        lcc.Memory.load(signed, trusted=[pair[1]])


def test_the_format_is_signed(memory, signed, pair):
    forged(signed, memory.tensors(), json.loads(json.dumps(memory.metadata())), "lcc-memory-1")
    lcc.Memory.load(signed)
    with pytest.raises(lcc.MemoryFileError, match="changed after"):
        lcc.Memory.load(signed, trusted=[pair[1]])


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda rows: [], lcc.MemoryFileError, "is not signed"),
        (lambda rows: [rows[0] | {"signature": "00" * 64}], lcc.MemoryFileError, "changed after"),
        (lambda rows: [rows[0] | {"signature": rows[0]["signature"][:-2]}], lcc.MemoryFileError, "changed after"),
        (lambda rows: [rows[0] | {"signature": "soup"}], lcc.MemoryFileError, "changed after"),
        (lambda rows: [rows[0] | {"public_key": "00" * 32}], lcc.MismatchError, f"signed by {'00' * 32}: none"),
        (lambda rows: [rows[0] | {"public_key": "\x1b"}], lcc.MismatchError, "none of them is trusted"),
        (lambda rows: [rows[0] | {"signature": 7}], lcc.MemoryFileError, "holds no signatures"),
        (lambda rows: [{"signature": rows[0]["signature"]}], lcc.MemoryFileError, "has no public_key"),
        (lambda rows: rows[0], lcc.MemoryFileError, "holds no signatures"),
        (lambda rows: None, lcc.MemoryFileError, "holds no signatures"),
        (lambda rows: ..., lcc.MemoryFileError, "is not JSON"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("detached", [False, True])
def test_every_field_of_a_signature(memory, pair, tmp_path, change, error, named, detached):
    path = tmp_path / "m"
    memory.save(path)
    target = lcc.sign(path, pair[0], detached=detached)
    rows = json.loads(target.read_bytes()) if detached else json.loads(header(path)[IN_HEADER])
    changed = "soup" if change(rows) is ... else json.dumps(change(rows))
    if detached:
        target.write_text(changed)
    else:
        save_file({name: each.contiguous() for name, each in memory.tensors().items()}, path,
                  header(path) | {IN_HEADER: changed})  # fmt: skip
    with pytest.raises(error, match=named):
        lcc.Memory.load(path, trusted=[pair[1]])
    with pytest.raises(error, match=named):
        lcc.verify_signature(path, [pair[1]])
    assert lcc.Memory.load(path).digest == memory.digest


def test_a_signature_of_another_file_fits_no_other(memory, pair, tmp_path):
    for name, each in (("a", memory), ("b", replace(memory, ratio=2.0))):
        each.save(tmp_path / name)
        lcc.sign(tmp_path / name, pair[0], detached=True)
    (tmp_path / "a.sig").write_bytes((tmp_path / "b.sig").read_bytes())
    with pytest.raises(lcc.MemoryFileError, match="changed after"):
        lcc.verify_signature(tmp_path / "a", [pair[1]])


def test_several_signers(signed, pair, tmp_path):
    others = [write_key(tmp_path / name) for name in ("second", "third")]
    lcc.sign(signed, others[0][0])
    lcc.sign(signed, others[0][0])
    assert len(json.loads(header(signed)[IN_HEADER])) == 2
    names = [name_of(public) for _, public in (pair, *others)]
    assert lcc.verify_signature(signed, [pair[1], others[0][1], others[1][1]]) == sorted(names[:2])
    with pytest.raises(lcc.MismatchError, match="none of them is trusted") as error:
        lcc.verify_signature(signed, [others[1][1]])
    assert all(name in str(error.value) for name in names[:2])
    lcc.sign(signed, others[1][0], detached=True)
    lcc.sign(signed, pair[0], detached=True)
    assert len(json.loads((tmp_path / "m.sig").read_bytes())) == 2
    assert lcc.verify_signature(signed, [others[1][1]]) == names[2:]


def test_saving_drops_the_signature(signed, pair, tmp_path):
    assert is_signed(signed)
    lcc.Memory.load(signed).save(signed)
    assert not is_signed(signed)
    with pytest.raises(lcc.MemoryFileError, match="is not signed"):
        lcc.Memory.load(signed, trusted=[pair[1]])


def test_certify_says_that_the_signature_is_gone(signed, pair, monkeypatch):
    row = {"engine": "e", "dtype": "float32", "date": "2026-01-02", "answers": 1, "same": 1, "changed": []}
    monkeypatch.setattr(loading, "load_model", lambda *_: (None, None))
    monkeypatch.setattr(certifying.ServedMemory, "version", "")
    monkeypatch.setattr(certifying, "certify_served", lambda memory, *_, **__: replace(memory, served=[row]))
    words = ["certify", str(signed), "--engine", "e"]
    assert "its signature is gone: sign it again" in runner.invoke(cli.app, words).stdout
    assert not is_signed(signed)
    assert "signature" not in runner.invoke(cli.app, words).stdout
    lcc.sign(signed, pair[0])
    assert json.loads(runner.invoke(cli.app, [*words, "--json"]).stdout)["signature_dropped"] is True


def test_a_detached_signature_of_an_older_state_is_refused_until_it_is_signed_again(memory, pair, tmp_path):
    memory.save(tmp_path / "m")
    lcc.sign(tmp_path / "m", pair[0], detached=True)
    replace(memory, ratio=2.0).save(tmp_path / "m")
    with pytest.raises(lcc.MemoryFileError, match="changed after"):
        lcc.verify_signature(tmp_path / "m", [pair[1]])
    lcc.sign(tmp_path / "m", pair[0])
    lcc.verify_signature(tmp_path / "m", [pair[1]])


def test_a_file_that_is_replaced_while_it_is_signed(memory, pair, tmp_path, monkeypatch):
    memory.save(tmp_path / "m")
    real = signing.save_tensors

    def meanwhile(*given, **options):
        replace(memory, ratio=2.0).save(tmp_path / "m")
        real(*given, **options)

    monkeypatch.setattr(signing, "save_tensors", meanwhile)
    with pytest.raises(lcc.MismatchError, match="replaced meanwhile; sign it again"):
        lcc.sign(tmp_path / "m", pair[0])
    assert lcc.Memory.load(tmp_path / "m").ratio == 2.0


@pytest.mark.parametrize("file", ["absent", "text", "torn", "state", "link"])
def test_files_that_are_not_signed(signed, pair, tmp_path, file):
    (tmp_path / "text").write_text("soup")
    (tmp_path / "torn").write_bytes(signed.read_bytes()[:-1])
    forge(tmp_path / "state", {"a": torch.zeros(1)}, {}, "lcc-state-1")
    (tmp_path / "link").symlink_to(signed)
    with pytest.raises(lcc.MemoryFileError):
        lcc.sign(tmp_path / file, pair[0])


def test_a_foreign_file_beside_is_not_replaced(signed, pair, tmp_path):
    (tmp_path / "m.sig").write_text("my notes")
    with pytest.raises(lcc.MemoryFileError, match="is not JSON"):
        lcc.sign(signed, pair[0], detached=True)
    assert (tmp_path / "m.sig").read_text() == "my notes"
    (tmp_path / "m.sig").unlink()
    os.mkfifo(tmp_path / "m.sig")
    with pytest.raises(lcc.MemoryFileError, match="no file of signatures"):
        lcc.verify_signature(signed, [pair[1]])


def test_without_the_extra_the_error_says_how_to_get_it(signed, pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(lcc.InputError, match=r"lcc-kernels\[sign\]"):
        lcc.sign(signed, pair[0])
    assert lcc.Memory.load(signed).ratio


def test_the_wrong_key_of_a_pair_is_named(signed, pair):
    with pytest.raises(lcc.InputError, match="is public, and a private one is needed"):
        lcc.sign(signed, pair[1])
    with pytest.raises(lcc.InputError, match="is private, and a public one is needed"):
        lcc.verify_signature(signed, [pair[0]])


def test_a_private_key_that_others_may_read_is_told_of(memory, pair, tmp_path):
    memory.save(tmp_path / "m")
    words = ["sign", str(tmp_path / "m"), "--key", str(pair[0])]
    assert "chmod" not in runner.invoke(cli.app, words).output
    pair[0].chmod(0o644)
    warned = runner.invoke(cli.app, words)
    assert (warned.exit_code, "chmod 600" in warned.stderr) == (0, True)


def test_the_commands(memory, tmp_path):
    memory.save(tmp_path / "m")

    def run(*words):
        return runner.invoke(cli.app, [str(word) for word in words])

    made = json.loads(run("keygen", tmp_path / "k", "--json").stdout)
    assert json.loads(run("sign", tmp_path / "m", "--key", made["private_key"], "--json").stdout)["signature"]
    shown = json.loads(run("verify", tmp_path / "m", "--key", made["public_key"], "--json").stdout)
    assert (shown["verified"], "model" in shown) == (True, False)
    assert shown["signed_by"] == [name_of(tmp_path / "k.pub")]
    run("keygen", tmp_path / "other")
    assert run("verify", tmp_path / "m", "--key", tmp_path / "other.pub").exit_code == 3
    both = run("verify", tmp_path / "m", "--key", tmp_path / "other.pub", "--key", made["public_key"])
    assert both.exit_code == 0
    assert run("verify", tmp_path / "m", "--key", made["public_key"], "--model", tmp_path).exit_code == 2
