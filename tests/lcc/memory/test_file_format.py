"""The file's versions: older files load, and what a newer version adds is kept or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import lcc
from lcc.memory.file_format import FORMAT
from lcc.utils.tensor_files import load_tensors, save_tensors
from tests.support.plain_memories import plain_memory

NEW_FIELDS = {"payload", "compiler", "requires", "made"}


@pytest.fixture
def memory(llama, tokenizer, text, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, text, monkeypatch)
    return replace(memory, questions=("Where does Mara live?", ("Who?", "Hugo", "And where?")))


def write(path, memory, kind=FORMAT, **fields):
    metadata = json.loads(json.dumps(memory.metadata())) | fields
    save_tensors(path, kind, memory.tensors(), {name: value for name, value in metadata.items() if value is not ...})
    return path


def test_a_file_of_version_1_loads_and_answers_the_same(memory, llama, tokenizer, tmp_path):
    old = lcc.Memory.load(write(tmp_path / "old", memory, "lcc-memory-1", **dict.fromkeys(NEW_FIELDS, ...)))
    assert old.compiler == {"name": "lcc"}
    assert old.metadata() == memory.metadata()
    questions = ["Where does Mara live?"]
    assert lcc.ask(llama, tokenizer, old, questions) == lcc.ask(llama, tokenizer, memory, questions)
    old.save(tmp_path / "new")
    assert load_tensors(tmp_path / "new", FORMAT)[1]["payload"] == "kv"


def test_optional_fields_of_a_newer_version_are_kept_and_written_back(memory, tmp_path):
    added = {"history": {"parents": ["ab"], "operation": "update"}, "signed": None}
    newer = lcc.Memory.load(write(tmp_path / "newer", memory, **added))
    assert newer.extra == added
    newer.save(tmp_path / "again")
    metadata = load_tensors(tmp_path / "again", FORMAT)[1]
    assert {name: metadata[name] for name in added} == added
    assert lcc.Memory.load(tmp_path / "again").extra == added
    assert newer.summary()["history"] == added["history"]
    assert replace(newer, ratio=4.0).extra == added


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cipher": "aes", "requires": ["cipher"]}, "cipher"),
        ({"requires": ["ratio", "page_size"]}, "page_size"),
        ({"payload": "prompt"}, "payload prompt"),
        ({"payload": 7}, "payload 7"),
    ],
)
def test_what_a_reader_must_know_is_refused_by_name(fields, named, memory, tmp_path):
    with pytest.raises(lcc.MemoryFileError, match=f"needs {named}, which this version does not know"):
        lcc.Memory.load(write(tmp_path / "m", memory, **fields))


@pytest.mark.parametrize("fields", [{"requires": "x"}, {"requires": [1]}, {"compiler": {}}, {"compiler": "lcc"}])
def test_broken_fields_are_refused_by_name(fields, memory, tmp_path):
    with pytest.raises(lcc.MemoryFileError, match=next(iter(fields))):
        lcc.Memory.load(write(tmp_path / "m", memory, **fields))


def test_known_fields_that_are_required_are_no_hindrance(memory, tmp_path):
    assert (
        lcc.Memory.load(write(tmp_path / "m", memory, requires=["ratio", "certificate", "payload", "dtype"])).extra
        == {}
    )
