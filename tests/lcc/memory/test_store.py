"""A store: a claim is one process's, what was made is kept, and the state that it was made from goes."""

from __future__ import annotations

import threading

import pytest

import lcc
from lcc.memory.store import FileStore, checkpoint_beside, get_or_make
from lcc.utils.outputs import Output
from tests.support.plain_memories import plain_memory


@pytest.fixture
def memory(llama, tokenizer, text, monkeypatch):
    return plain_memory(llama, tokenizer, text, monkeypatch)[0]


@pytest.fixture
def store(tmp_path):
    return FileStore(lambda key: Output.of(tmp_path / key))


def test_made_once_and_found_again(store, memory, tmp_path):
    claims = []

    def make(claim):
        claims.append(claim.checkpoint)
        claim.checkpoint.mkdir()
        return memory

    assert store.get("one") is None
    assert get_or_make(store, "one", make) == "compiled"
    assert claims == [checkpoint_beside(tmp_path / "one")]
    assert store.get("one").source_sha256 == memory.source_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert get_or_make(store, "one", make) == "skipped"
    assert get_or_make(store, "one", make, accepts=lambda memory: False) == "compiled"
    assert len(claims) == 2


def test_an_error_leaves_the_state_and_frees_the_claim(store, tmp_path):
    def fail(claim):
        claim.checkpoint.mkdir()
        raise KeyError

    with pytest.raises(KeyError):
        get_or_make(store, "one", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["one.checkpoint"]


def test_a_claim_is_exclusive_and_can_be_waited_for(store, memory):
    outcomes = []
    with store.claim("one") as claim:
        assert claim
        with store.claim("one") as other:
            assert other is None
        assert get_or_make(store, "one", lambda claim: memory) == "locked"
        waiting = threading.Thread(
            target=lambda: outcomes.append(get_or_make(store, "one", lambda claim: memory, wait=True))
        )
        waiting.start()
        with store.claim("two") as two:
            assert two
        assert not outcomes
    waiting.join()
    assert outcomes == ["compiled"]


def test_what_is_no_memory_is_none(store, tmp_path):
    (tmp_path / "one").write_text("notes")
    assert store.get("one") is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(lcc.MemoryFileError, match="is a folder"):
        store.get("folder")


@pytest.mark.parametrize("look", [lambda path: path.stat(), lcc.Memory.load])
def test_a_file_that_another_process_removes_meanwhile_is_none_to_replace(tmp_path, look):
    path = tmp_path / "one.lock"
    path.touch()

    def rule(path):
        path.unlink()
        look(path)

    Output(path, ours=rule).check()
    path.touch()
    with pytest.raises(lcc.MemoryFileError, match="is there already"):
        Output(path).check()
