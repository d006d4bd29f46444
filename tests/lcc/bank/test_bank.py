"""A bank keeps memories of one model, tells what it has, and forgets what it is told to."""

from __future__ import annotations

import pytest

import lcc
from lcc.bank.index import Hit
from lcc.bank.passages import Passage
from tests.lcc.bank.conftest import MARA, TIMO
from tests.support.small_memories import small_memory

VERA = "Vera dives in the sea."


def keys(bank):
    return [document.key for document in bank.documents()]


def test_what_is_put_is_there_and_still_there_when_it_is_opened_again(people):
    with lcc.MemoryBank(people.path) as again:
        for bank in (people, again):
            assert keys(bank) == ["mara", "timo"]
            assert bank.text("mara") == MARA
            assert bank.text("timo") is None
            assert bank.memory("timo").source_sha256 == small_memory(TIMO).source_sha256
            assert bank.damaged == {}
            assert bank.rebuilt is None
            assert bank.verify() == []
        assert again.documents() == people.documents()
    mara = people.document("mara")
    assert (mara.status, mara.payload, mara.compiler, mara.has_text) == ("ok", "kv", "lcc", True)
    assert (mara.source_tokens, mara.buffer_tokens, mara.tensor_bytes) == (6, 2, 32)


def test_a_memory_is_found_by_its_questions_or_without_any_by_its_text(people):
    assert people.passages("mara") == [
        Passage("question", "Where does Mara live?"),
        Passage("question", "Hello! What does Mara do?"),
    ]
    people.put("vera", small_memory(VERA), VERA)
    assert people.passages("vera") == [Passage("text", VERA)]
    assert [hit.key for hit in people.search("where is MARA living?")] == ["mara", "timo"]
    assert [hit.key for hit in people.search("where is MARA living?", k=1)] == ["mara"]
    [hit] = people.search("diving")
    assert hit == Hit("vera", hit.score, hit.share, VERA)
    assert 0.2 < hit.share < 2
    assert people.search("diving", without=VERA) == []
    assert people.search("swims") == []  # of a text that is not kept


def test_an_empty_bank_finds_nothing(bank):
    assert (bank.documents(), bank.search("Mara"), bank.verify()) == ([], [], [])


def test_a_newer_memory_takes_the_place_of_an_older(people):
    people.put("mara", small_memory("Mara moved to Rome.", "Where did Mara move?"))
    assert people.text("mara") is None
    assert not (people.path / "texts" / "mara.txt").exists()
    assert people.search("Oslo") == []
    assert [hit.key for hit in people.search("moving")] == ["mara"]
    assert keys(people) == ["mara", "timo"]


def test_a_text_stays_with_the_memory_that_it_is_of(people):
    people.put("mara", small_memory(MARA, "Who knits?"))
    assert people.text("mara") == MARA
    with pytest.raises(lcc.MismatchError, match="the memory mara is of another text"):
        people.put("mara", small_memory(MARA), TIMO)


@pytest.mark.parametrize(
    ("options", "named"), [({"model": "another"}, "model_weights"), ({"prefix_ids": (1,)}, "prefix_ids")]
)
def test_one_bank_is_of_one_model_and_one_prefix(people, options, named):
    with pytest.raises(lcc.MismatchError, match=f"vera cannot stand .* beside mara: they differ in {named};"):
        people.put("vera", small_memory("Vera.", **options), "Vera.")
    assert keys(people) == ["mara", "timo"]
    assert sorted(path.name for path in people.path.rglob("vera*")) == []
    people.remove("timo")
    people.put("mara", small_memory("Mara.", **options))
    assert keys(people) == ["mara"]


def test_removed_memories_leave_nothing(people):
    with pytest.raises(lcc.InputError, match=r"no memory 'vera' in the bank .*: lcc bank list"):
        people.remove("mara", "vera")
    people.remove("mara")
    assert keys(people) == ["timo"]
    assert [hit.key for hit in people.search("where does mara live")] == ["timo"]
    assert not list(people.path.rglob("mara*"))
    for ask in (people.document, people.memory, people.text, people.remove):
        with pytest.raises(lcc.InputError, match="no memory 'mara'"):
            ask("mara")


def test_an_imported_memory_has_the_name_of_its_file(bank, tmp_path):
    path = tmp_path / "vera.v2.lcc.safetensors"
    small_memory("Vera.").save(path)
    assert bank.import_memory(path) == "vera.v2"
    assert bank.import_memory(path, "vera", "Vera.") == "vera"
    assert keys(bank) == ["vera", "vera.v2"]
    assert bank.text("vera") == "Vera."


@pytest.mark.parametrize(
    "key", ["", ".hidden", "-f", "a/b", "..", "a\\b", "a\nb", "a\0", " a", "a:b", "k" * 201, "\ud800"]
)
def test_a_key_names_a_file_everywhere(bank, key):
    with pytest.raises(lcc.InputError, match="cannot name a memory of a bank: take at most 200 bytes"):
        bank.put(key, small_memory("text"))


def test_keys_of_any_language_and_with_spaces(bank):
    names = ["Bericht (März) v1.2", "отчёт", "報告", "k" * 200]
    for name in names:
        bank.put(name, small_memory(name), name)
    assert keys(bank) == sorted(names)
    assert bank.verify() == []


def test_a_missing_bank_names_the_way_to_one(tmp_path):
    with pytest.raises(lcc.MemoryFileError, match=r"there is no bank in .*: make one with lcc bank add"):
        lcc.MemoryBank(tmp_path / "absent")


def test_a_memory_that_is_being_made_is_left_alone(people):
    with people.folder.store.claim("mara") as claim:
        assert claim
        for change in (lambda: people.put("mara", small_memory(MARA)), lambda: people.remove("mara")):
            with pytest.raises(lcc.MemoryFileError, match="another process is making the memory mara"):
                change()
    assert keys(people) == ["mara", "timo"]
