"""The index follows the files, and is made anew where it is of no use; a damaged memory is named and skipped."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing

import pytest

import lcc
from lcc.bank.index import BankIndex
from lcc.memory import memory as memory_file
from tests.lcc.bank.conftest import MARA, TIMO
from tests.support.small_memories import small_memory


def reopened(bank):
    bank.close()
    return lcc.MemoryBank(bank.path)


def keys(bank):
    return [document.key for document in bank.documents()]


@pytest.fixture
def loaded(monkeypatch):
    """The names of the memories' files that were read."""
    real, names = memory_file.load_stored, []

    def noted(path, *formats, **options):
        names.append(path.name)
        return real(path, *formats, **options)

    monkeypatch.setattr(memory_file, "load_stored", noted)
    return names


def test_only_what_is_new_or_changed_is_read(people, loaded):
    memories = people.path / "memories"
    shutil.copy(memories / "timo.lcc.safetensors", memories / "copy.lcc.safetensors")
    (memories / "notes.txt").touch()
    (memories / ".hidden.lcc.safetensors").touch()
    with reopened(people) as bank:
        assert keys(bank) == ["copy", "mara", "timo"]
    with lcc.MemoryBank(people.path) as bank:
        assert loaded == ["copy.lcc.safetensors"]
        os.utime(memories / "mara.lcc.safetensors")
    with lcc.MemoryBank(people.path) as bank:
        assert loaded[1:] == ["mara.lcc.safetensors"]
        (memories / "copy.lcc.safetensors").unlink()
    with lcc.MemoryBank(people.path) as bank:
        assert keys(bank) == ["mara", "timo"]
        assert len(loaded) == 2
        assert bank.rebuilt is None


def test_a_text_that_comes_or_goes_by_hand(people):
    people.put("timo", small_memory(TIMO))
    (people.path / "texts" / "mara.txt").unlink()
    (people.path / "texts" / "timo.txt").write_text(TIMO)
    with reopened(people) as bank:
        assert (bank.text("mara"), bank.text("timo")) == (None, TIMO)
        assert [hit.key for hit in bank.search("swims")] == ["timo"]
        (bank.path / "texts" / "timo.txt").write_text("Another text that swims.")
        (bank.path / "texts" / "vera.txt").write_bytes(b"\xff")
    with lcc.MemoryBank(people.path) as bank:
        assert bank.text("timo") is None
        assert bank.search("swims") == []
        texts = bank.path / "texts"
        assert [(problem.key, problem.what) for problem in bank.verify()] == [
            (None, f"{texts / 'vera.txt'} belongs to no memory: delete it, or add its document again"),
            ("timo", f"{texts / 'timo.txt'} is of another text: delete it"),
        ]


def test_a_damaged_memory_is_named_and_skipped(people):
    path = people.path / "memories" / "mara.lcc.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with reopened(people) as bank:
        assert list(bank.damaged) == ["mara"]
        assert "truncated" in bank.damaged["mara"]
        assert [hit.key for hit in bank.search("where do Mara and Timo live")] == ["timo"]
        assert bank.text("mara") is None
        assert [problem.key for problem in bank.verify()] == ["mara"]
        with pytest.raises(lcc.MemoryFileError, match="truncated"):
            bank.memory("mara")
        path.write_bytes(whole)
    with lcc.MemoryBank(people.path) as bank:
        assert bank.damaged == {}
        assert [hit.key for hit in bank.search("Mara")] == ["mara"]
        bank.memory("timo").save(path)
        path.write_bytes(path.read_bytes().replace(b"Timo live", b"Timo lies"))
        bank.refresh("mara")
        assert "was changed after it was written" in bank.damaged["mara"]
        bank.put("mara", small_memory(MARA), MARA)
        assert bank.damaged == {}


def test_a_foreign_memory_among_the_files_is_named_and_skipped(people):
    small_memory("Vera.", "Who is Vera?", model="another").save(people.path / "memories" / "vera.lcc.safetensors")
    small_memory("Vera.").save(people.path / "memories" / "a:b.lcc.safetensors")
    with reopened(people) as bank:
        assert "vera cannot stand in the bank" in bank.damaged["vera"]
        assert bank.search("Vera") == []
        assert keys(bank) == ["mara", "timo", "vera"]
        assert any("a:b.lcc.safetensors" in problem.what for problem in bank.verify())
        bank.remove("vera")
        assert bank.damaged == {}


def garbage(path):
    path.write_bytes(b"garbage" * 1000)


def truncated(path):
    path.write_bytes(path.read_bytes()[:5000])


def emptied(path):
    path.write_bytes(b"")


def overwritten(path):
    """Every page but the first is garbage."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def statement(sql):
    def change(path):
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(sql)

    return change


@pytest.mark.parametrize(
    "damage",
    [garbage, truncated, emptied, overwritten, statement("PRAGMA user_version = 99"), statement("DROP TABLE stems"),
     statement("ALTER TABLE documents ADD COLUMN other"), statement("CREATE TABLE other(id)")],
)  # fmt: skip
def test_an_index_of_no_use_is_made_anew_from_the_files(people, damage):
    people.close()
    damage(people.path / "bank.sqlite")
    (people.path / "bank.sqlite-wal").write_bytes(b"of another file")
    with lcc.MemoryBank(people.path) as bank:
        assert bank.rebuilt.startswith(("is damaged (", "is of another version or program"))
        assert keys(bank) == ["mara", "timo"]
        assert [hit.key for hit in bank.search("Mara")] == ["mara"]
        assert bank.verify() == []
    with lcc.MemoryBank(people.path) as bank:
        assert bank.rebuilt is None
    assert sorted(path.name for path in people.path.iterdir()) == ["bank.sqlite", "memories", "texts"]


def test_an_index_that_is_lost_is_made_anew_and_that_is_no_damage(people):
    people.close()
    (people.path / "bank.sqlite").unlink()
    with lcc.MemoryBank(people.path) as bank:
        assert bank.rebuilt is None
        assert keys(bank) == ["mara", "timo"]


def test_damage_that_shows_later_is_mended_too(people):
    with sqlite3.connect(people.path / "bank.sqlite") as connection:
        connection.execute("DELETE FROM terms_data WHERE id > 10")
        connection.execute("UPDATE terms_data SET block = x'ffffffffffff' WHERE id = 10")
    connection.close()
    with reopened(people) as bank:
        assert "run lcc bank rebuild" in bank.verify()[0].what
        assert [hit.key for hit in bank.search("Mara")] == ["mara"]
        assert "is damaged" in bank.rebuilt
        assert bank.verify() == []


def test_rebuilding_under_another_reader(people):
    with lcc.MemoryBank(people.path) as other:
        people.rebuild()
        other.put("vera", small_memory("Vera.", "Who is Vera?"))
        assert [hit.key for hit in people.search("Vera")] == ["vera"]
        assert keys(other) == ["mara", "timo", "vera"]


def test_a_bank_that_may_not_be_written(people, monkeypatch):
    people.close()
    memories = people.path / "memories"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path in (people.path / "bank.sqlite", people.path):
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in people.path.rglob("*")}
    with lcc.MemoryBank(people.path) as bank:
        assert [hit.key for hit in bank.search("Mara")] == ["mara"]
        assert bank.memory("timo").source_tokens == 6
        assert bank.verify() == []
        with pytest.raises(lcc.MemoryFileError):
            bank.put("vera", small_memory("Vera."))
    assert before == {path: path.stat().st_mtime_ns for path in people.path.rglob("*")}
    os.utime(memories / "mara.lcc.safetensors")
    with pytest.raises(lcc.MemoryFileError, match="does not have the latest of mara"):
        lcc.MemoryBank(people.path)
    people.path.chmod(0o755)
    (people.path / "bank.sqlite").unlink()
    with pytest.raises(lcc.MemoryFileError, match=r"index .* is missing, and this user may not make it"):
        lcc.MemoryBank(people.path)


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("forget", ["forget_text", "remove"])
def test_a_forgotten_text_leaves_no_word_behind(bank, forget):
    words = [f"{word}{number}" for number in range(300) for word in ("Xylograph", "quibble")]
    text = " ".join(words)
    bank.put("mara", small_memory(MARA, "Where does Mara live?"), MARA)
    bank.put("secret", small_memory(text), text)
    assert [hit.key for hit in bank.search("Xylograph7")] == ["secret"]
    getattr(bank, forget)("secret")
    assert bank.search("Xylograph7") == []
    for open_or_not in (True, False):
        content = everything(bank.path).lower()
        assert b"xylograph" not in content
        assert not [word for word in words if word.lower().encode() in content]
        assert b"oslo" in content
        if open_or_not:
            bank.close()


def test_a_kill_before_the_words_are_gone_is_made_good(people, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(BankIndex, "scrub", lambda index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            people.remove("mara")
    assert b"Hello" in everything(people.path)
    reopened(people).close()
    assert b"Hello" not in everything(people.path)
