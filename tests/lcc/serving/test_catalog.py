"""The memories of a folder by their ids."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest

import lcc
from lcc.errors import InputError
from lcc.memory.keys import write_key
from lcc.memory.payload import KVPayload
from lcc.modeling.kv import KV
from lcc.serving.api_errors import ApiError
from lcc.serving.catalog import tokens_of
from tests.support.adapters import adapter_memory
from tests.support.served import NAMES, make_catalog


@pytest.fixture
def catalog(loaded, folder):
    return make_catalog(*loaded, folder)


@pytest.fixture
def file(folder):
    return lambda name: folder / f"{name}.lcc.safetensors"


def refusal(call, *arguments) -> ApiError:
    with pytest.raises(ApiError) as refused:
        call(*arguments)
    return refused.value


def test_every_file_is_there_by_its_id(catalog, shelf, folder):
    (folder / "notes.txt").write_text("none")
    (folder / ".lcc.safetensors").write_text("none")
    (folder / ".ada.lcc.safetensors.0123abcd.partial").write_text("none")
    assert catalog.ids() == sorted(NAMES)
    for name in NAMES:
        entry, memory = catalog.entry(name), shelf.memories[name]
        assert entry.prefix_ids == memory.prefix_ids
        assert entry.tokens == len(memory.prefix_ids) + memory.buffer_tokens
        assert catalog.memory(entry).digest == memory.digest
        assert catalog.entry(name) is entry


def test_a_new_file_is_there_at_once(catalog, file):
    assert refusal(catalog.entry, "new").status == 404
    shutil.copy(file("ada"), file("new"))
    assert "new" in catalog.ids()
    assert catalog.entry("new").digest == catalog.entry("ada").digest


def test_a_replaced_file_is_another_memory(catalog, file):
    before = catalog.entry("ada")
    shutil.copy(file("bo"), file("ada"))
    after = catalog.entry("ada")
    assert after.digest == catalog.entry("bo").digest != before.digest
    error = refusal(catalog.memory, before)
    assert (error.status, error.retry_after) == (503, 1)


def test_a_replacement_that_keeps_size_and_times_is_seen(catalog, file, shelf):
    """As ``cp -p`` of another memory leaves it: even the inode stays."""
    ada = replace(shelf.memories["ada"], settings={"a": "1"})
    other = replace(ada, payload=KVPayload(KV(ada.payload.kv.keys, -ada.payload.kv.values)))
    ada.save(file("ada"))
    before, state = catalog.entry("ada"), file("ada").stat()
    other.save(file("other"))
    file("ada").write_bytes(file("other").read_bytes())
    os.utime(file("ada"), ns=(state.st_atime_ns, state.st_mtime_ns))
    now = file("ada").stat()
    assert (now.st_mtime_ns, now.st_size, now.st_ino) == (state.st_mtime_ns, state.st_size, state.st_ino)
    assert catalog.entry("ada").digest == catalog.entry("other").digest != before.digest


def test_a_damaged_file_is_503_and_well_again_after(catalog, file):
    whole = file("ada").read_bytes()
    for content in (whole[:-1], whole[:100], b"", b"x" * len(whole), whole + b"x"):
        file("ada").write_bytes(content)
        for _ in range(2):
            error = refusal(catalog.entry, "ada")
            assert (error.status, error.retry_after) == (503, 1)
        assert str(file("ada").parent) not in str(error)
        assert "ada" in catalog.ids()
    file("ada").write_bytes(whole)
    assert catalog.entry("ada").tokens


def test_a_removed_file_is_404_and_nothing_is_kept_of_it(catalog, file):
    catalog.entry("ada")
    file("bo").write_bytes(b"")
    refusal(catalog.entry, "bo")
    for name in ("ada", "bo"):
        file(name).unlink()
        assert refusal(catalog.entry, name).status == 404
        assert name not in catalog.ids()
    assert catalog._known == {}
    assert catalog._refused == {}


def test_a_memory_of_another_model_is_409(catalog, file, shelf):
    memory = shelf.memories["ada"]
    replace(memory, fingerprint=memory.fingerprint | {"model_weights": "x"}).save(file("ada"))
    error = refusal(catalog.entry, "ada")
    assert error.status == 409
    assert "model_weights" in str(error)


def test_an_adapter_is_409(catalog, file, loaded):
    adapter_memory(*loaded).save(file("ada"))
    error = refusal(catalog.entry, "ada")
    assert error.status == 409
    assert "adapter" in str(error)


def test_what_is_no_file(catalog, file):
    file("dir").mkdir()
    os.mkfifo(file("fifo"))
    os.symlink(file("nothing"), file("dangling"))
    assert refusal(catalog.entry, "dir").status == 503
    assert refusal(catalog.entry, "fifo").status == 503
    assert refusal(catalog.entry, "dangling").status == 404


def test_a_file_name_that_is_no_text_is_left_out(catalog, folder):
    try:
        (folder / os.fsdecode(b"\xff.lcc.safetensors")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text alone")
    assert catalog.ids() == sorted(NAMES)


TRICKS = ("", ".", "..", "../ada", "../memories/ada", "a/../ada", "ada\0", "\ud800", "x" * 10**6, "ada/", "/etc/passwd")


@pytest.mark.parametrize("name", TRICKS, ids=range(len(TRICKS)))
def test_ids_that_are_path_tricks(catalog, name):
    error = refusal(catalog.entry, name)
    assert error.status == 404
    str(error).encode()


def test_add_and_remove(catalog, folder, file):
    (folder / "inner").mkdir()
    shutil.copy(file("bo"), folder / "inner" / "any name")
    assert catalog.add("alias", "inner/any name").digest == catalog.entry("bo").digest
    assert catalog.ids() == ["ada", "alias", "bo", "cy"]
    catalog.remove("alias")
    assert refusal(catalog.entry, "alias").status == 404
    assert refusal(catalog.remove, "alias").status == 404
    assert catalog.add("alias", "ada.lcc.safetensors").digest == catalog.entry("ada").digest
    assert (folder / "inner" / "any name").is_file()


def test_a_deleted_id_comes_back_when_it_is_added(catalog, file):
    catalog.remove("ada")
    assert "ada" not in catalog.ids()
    assert refusal(catalog.entry, "ada").status == 404
    catalog.add("ada", "bo.lcc.safetensors")
    assert catalog.entry("ada").digest == catalog.entry("bo").digest
    catalog.remove("ada")
    catalog.add("ada", "ada.lcc.safetensors")
    assert catalog.entry("ada").digest != catalog.entry("bo").digest
    assert file("ada").is_file()


def test_what_cannot_be_added(catalog, folder, file, tmp_path):
    shutil.copy(file("ada"), tmp_path / "outside")
    os.symlink(tmp_path / "outside", folder / "link")
    os.symlink(tmp_path, folder / "up")
    (folder / "broken").write_bytes(b"x")
    tricks = ("../outside", "link", "up/outside", str(tmp_path / "outside"), ".", "", "\0", "\ud800")
    for path in tricks:
        error = refusal(catalog.add, "new", path)
        assert (error.status, error.param) == (400, "path"), path
        str(error).encode()
    for name in ("", "a/b", "a\0", "\ud800"):
        assert refusal(catalog.add, name, "ada.lcc.safetensors").param == "id"
    for path in ("nothing", "inner", "x" * 10**5):
        assert refusal(catalog.add, "new", path).status == 404
    assert refusal(catalog.add, "new", "broken").status == 409
    assert refusal(catalog.add, "bo", "ada.lcc.safetensors").status == 409
    catalog.remove("bo")
    assert refusal(catalog.add, "bo", "broken").status == 409
    assert catalog.ids() == ["ada", "cy"]


def test_several_memories(catalog, shelf, file):
    found = catalog.entries(["cy", "ada"])
    assert [entry.id for entry in found] == ["cy", "ada"]
    buffers = sum(shelf.memories[name].buffer_tokens for name in ("cy", "ada"))
    assert tokens_of(found) == len(found[0].prefix_ids) + buffers
    assert tokens_of(()) == 0
    assert catalog.entries([]) == ()
    assert refusal(catalog.entries, ["ada", "ada"]).status == 400
    assert refusal(catalog.entries, ["ada", "nobody"]).status == 404
    memory = shelf.memories["bo"]
    replace(memory, prefix_ids=memory.prefix_ids[:-1]).save(file("bo"))
    error = refusal(catalog.entries, ["ada", "bo"])
    assert (error.status, error.param) == (400, "memories")


def test_there_is_a_folder(loaded, tmp_path):
    for path in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="folder"):
            make_catalog(*loaded, path)
    (tmp_path / "empty").mkdir()
    assert make_catalog(*loaded, tmp_path / "empty").ids() == []


def test_a_folder_that_goes_away(catalog, folder):
    shutil.rmtree(folder)
    assert refusal(catalog.ids).status == 503
    assert refusal(catalog.entry, "ada").status == 404


def test_threads_that_ask_while_files_are_replaced(catalog, file, shelf):
    """Whatever they are told is a memory that was there."""
    contents = {name: file(name).read_bytes() for name in NAMES}
    digests, stop = {catalog.entry(name).digest for name in NAMES}, threading.Event()

    def replacing():
        for number in range(60):
            for name in ("ada", "bo"):
                beside = file(name).with_suffix(".new")
                beside.write_bytes(contents[NAMES[number % 3]])
                beside.replace(file(name))
        stop.set()

    def asking(_):
        seen = set()
        while not stop.is_set():
            for name in NAMES:
                with suppress(ApiError):
                    seen.add(catalog.entry(name).digest)
        return seen

    with ThreadPoolExecutor(4) as threads:
        asked = threads.map(asking, range(3))
        threads.submit(replacing).result()
        assert all(seen <= digests for seen in asked)
    file("ada").write_bytes(contents["ada"])
    assert catalog.memory(catalog.entry("ada")).digest == shelf.memories["ada"].digest


@pytest.fixture
def pair(tmp_path):
    return write_key(tmp_path / "key")


@pytest.fixture
def trusting(loaded, folder, pair):
    return make_catalog(*loaded, folder, trusted=[pair[1]])


def test_only_what_a_trusted_key_signed_is_there(trusting, catalog, file, pair, tmp_path):
    ada, bo = file("ada"), file("bo")
    lcc.sign(ada, pair[0])
    lcc.sign(bo, write_key(tmp_path / "foreign")[0])
    assert trusting.entry("ada").digest == catalog.entry("ada").digest
    foreign = refusal(trusting.entry, "bo")
    assert foreign.status == 409
    assert "none of them is trusted" in str(foreign)
    assert str(tmp_path) not in str(foreign)
    shutil.copy(ada, bo)
    assert trusting.entry("bo").digest == trusting.entry("ada").digest


def test_a_detached_signature_counts_while_it_is_there(trusting, file, pair):
    ada = file("ada")
    unsigned = refusal(trusting.entry, "ada")
    assert unsigned.status == 503
    assert "ada.lcc.safetensors is not signed" in str(unsigned)
    signature = lcc.sign(ada, pair[0], detached=True)
    assert trusting.entry("ada").digest
    signature.unlink()
    assert "not signed" in str(refusal(trusting.entry, "ada"))


def test_a_key_that_cannot_be_read(loaded, folder, tmp_path):
    with pytest.raises(InputError, match=r"the key .* is no file"):
        make_catalog(*loaded, folder, trusted=[tmp_path / "no-key"])
