"""Files are written whole or not at all, and refused when they are not what was written."""

from __future__ import annotations

import errno
import json
import os
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from lcc.errors import MemoryFileError
from lcc.utils.outputs import write_bytes
from lcc.utils.tensor_files import load_tensors, save_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "file.safetensors"
    save_tensors(target, "test-1", TENSORS, {"number": 1})
    return target


@pytest.fixture(params=[False, True], ids=["mapped", "apart"])
def read(request):
    return partial(load_tensors, apart=request.param)


def test_round_trip(path, read):
    tensors, metadata = read(path, "test-1")
    assert metadata == {"number": 1}
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_file_is_refused(path, keep, read):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MemoryFileError, match="truncated"):
        read(path, "test-1")


def test_changed_tensor_is_refused(path, read):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MemoryFileError, match="digest"):
        read(path, "test-1")


def test_changed_metadata_is_refused(path, read):
    content = path.read_bytes()
    assert content.count(b'\\"number\\": 1') == 1
    path.write_bytes(content.replace(b'\\"number\\": 1', b'\\"number\\": 2'))
    with pytest.raises(MemoryFileError, match="digest"):
        read(path, "test-1")


def test_foreign_files_are_refused(path, tmp_path, read):
    other = tmp_path / "other.safetensors"
    save_file(TENSORS, other)
    with pytest.raises(MemoryFileError, match="not one of this package's"):
        read(other, "test-1")
    save_file(TENSORS, other, {"lcc": json.dumps(["no", "header"])})
    with pytest.raises(MemoryFileError, match="metadata"):
        read(other, "test-1")
    with pytest.raises(MemoryFileError, match="format"):
        read(path, "test-2")
    save_tensors(other, "test-1", TENSORS, ["no", "object"])
    with pytest.raises(MemoryFileError, match="no JSON object"):
        read(other, "test-1")
    with pytest.raises(MemoryFileError, match="no file"):
        read(tmp_path / "absent", "test-1")


def test_what_was_read_apart_stays(path):
    """Whatever is written to the file, and though it is cut off: tensors that are the file itself would end us."""
    tensors, _ = load_tensors(path, "test-1", apart=True)
    path.write_bytes(b"\0" * path.stat().st_size)
    path.write_bytes(b"")
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_full_disk_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MemoryFileError, match="No space left"):
        save_tensors(path, "test-1", TENSORS, {"number": 2})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_unwritable_targets_are_refused(path):
    # A folder that cannot be written, for root as well: /proc, a file in place of a folder, and a missing one.
    for target in ("/proc/memory.safetensors", path / "below-a-file", path.parent / "missing" / "file"):
        with pytest.raises(MemoryFileError, match="cannot write"):
            save_tensors(target, "test-1", TENSORS, {})


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_mode_that_the_process_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "plain", b"x")
        save_tensors(tmp_path / "tensors", "f", {"x": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
