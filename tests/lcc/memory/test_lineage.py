"""A memory's history: what is recorded, what older files are read as, and every field that is tampered with."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.memory.ancestry import verify_lineage
from lcc.memory.lineage import Ancestor, check_lineage, succession
from lcc.memory.payload import KVPayload
from lcc.modeling.kv import KV
from lcc.utils.version import __version__
from tests.support.forge import forge
from tests.support.plain_memories import plain_memory

runner = CliRunner()


@pytest.fixture
def first(llama, tokenizer, text, monkeypatch):
    return plain_memory(llama, tokenizer, text, monkeypatch)[0]


def step(operation, settings, memory, *others):
    """A memory of other tensors that ``operation`` makes of these."""
    values = memory.kv.values + 1.0
    return replace(
        memory,
        payload=KVPayload(KV(memory.kv.keys, values)),
        **memory.succeeded_by(operation, settings, *others),
    )


@pytest.fixture
def family(first):
    """Two grandparents, a parent of both, and a child of the parent and of the first grandparent."""
    other = replace(first, payload=KVPayload(KV(-first.kv.keys, first.kv.values)))
    parent = step("update", {"ratio": 8, "steps": 2}, first, other)
    child = step("merge", {"ratio": 8, "steps": 3}, parent, first)
    return {"first": first, "other": other, "parent": parent, "child": child}


@pytest.fixture
def folder(family, tmp_path):
    for name, memory in family.items():
        memory.save(tmp_path / f"{name}.lcc.safetensors")
    return tmp_path


def metadata_of(memory):
    return json.loads(json.dumps(memory.metadata()))


def test_a_step_records_itself_and_all_before_it(family):
    first, other, parent, child = family.values()
    assert parent.made == {
        "operation": "update", "parents": [first.digest, other.digest], "settings": {"ratio": 8, "steps": 2},
        "version": __version__,
    }  # fmt: skip
    assert [each["digest"] for each in parent.lineage] == [first.digest, other.digest]
    # A memory that is an ancestor twice stands behind all that was made of it.
    assert [each["digest"] for each in child.lineage] == [parent.digest, other.digest, first.digest]
    assert child.lineage[0] == parent.with_ancestors()[0]
    assert child.lineage[0]["buffer_tokens"] == parent.buffer_tokens


def test_a_step_that_changes_nothing_is_no_ancestor_of_its_own(first):
    still = replace(first, **first.succeeded_by("refine", {}))
    assert still.digest == first.digest
    after = step("update", {}, still)
    assert [each["digest"] for each in after.lineage] == [first.digest]
    after.check()


def test_a_way_back_to_the_same_tensors_is_left_out(first):
    there = step("update", {}, first)
    back = replace(first, **there.succeeded_by("undo", {}))
    assert (back.digest, len(back.lineage)) == (first.digest, 2)
    after = step("merge", {}, back, there)
    assert after.made["parents"] == [first.digest, there.digest]
    assert [each["digest"] for each in after.lineage] == [there.digest, first.digest]
    assert step("update", {}, back).lineage == first.with_ancestors()


def test_tensors_that_were_made_in_two_ways(first):
    one, other = (
        step("a", {}, first),
        step("b", {}, replace(first, payload=KVPayload(KV(-first.kv.keys, first.kv.values)))),
    )
    other = replace(one, made=other.made, lineage=other.lineage)
    merged = step("merge", {}, one, other)
    assert [each["operation"] for each in merged.lineage] == ["b", "compile"]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(st.integers(0, 99), max_size=3)), max_size=15))
def test_whatever_is_made_of_whatever_a_reader_takes_it(steps):
    """Tensors come again, and memories are made of several."""
    lines = []
    for digest, chosen in steps:
        made = succession("x", {}, [lines[number % len(lines)] for number in chosen if lines])
        check_lineage(**made)
        lines.append([Ancestor(**made["made"], digest=digest, compiler={}, buffer_tokens=1), *made["lineage"]])


@pytest.mark.parametrize("settings", [{"a": object()}, {"a": {1j}}, {"a": "\ud800"}])
def test_settings_are_json(first, settings):
    with pytest.raises(lcc.InputError, match="JSON"):
        first.succeeded_by("update", settings)
    for operation in ("", 7, "\ud800"):
        with pytest.raises(lcc.InputError, match="operation"):
            first.succeeded_by(operation, {})


def test_compilations_and_quantising_record_themselves(llama, tokenizer, text, fast):
    options = {**fast, "certify": False, "steps": 1}
    begun = lcc.compile(llama, tokenizer, text, compiler="attention_matching", **options)
    assert (begun.made["operation"], begun.made["parents"], begun.lineage) == ("compile", [], [])
    assert begun.made["settings"]["seed"] == options.get("seed", 0)
    refined = lcc.compile(llama, tokenizer, text, compiler="direct_kv", start=begun, **options)
    small = lcc.quantize(refined, "int8", llama, tokenizer, answers=1, max_new_tokens=1)
    assert [small.made["operation"], *(each["operation"] for each in small.lineage)] == [
        "quantize",
        "refine",
        "compile",
    ]
    assert small.made["settings"] == {"dtype": "int8"}
    assert small.made["parents"] == [refined.digest]


def test_another_version_makes_no_other_compilation(llama, tokenizer, text, fast, tmp_path):
    options = {**fast, "certify": False, "steps": 1, "compiler": "direct_kv"}
    begun = lcc.compile(llama, tokenizer, text, compiler="attention_matching", certify=False, ratio=fast["ratio"])
    assert begun.made["version"] == __version__
    older = replace(begun, made=begun.made | {"version": "0.0.1"})
    source = tmp_path / "text"
    source.write_text(text)
    results = [
        lcc.compile_documents(llama, tokenizer, [source], tmp_path / "out", start=start, **options)
        for start in (begun, older)
    ]
    assert [each.status for (each,) in results] == ["compiled", "skipped"]


@pytest.mark.parametrize("ancestors", [0, 1, 3])
def test_an_older_file_is_one_line(first, tmp_path, ancestors):
    metadata = metadata_of(first)
    del metadata["made"]
    metadata["lineage"] = [{"digest": f"{n}" * 64, "compiler": {"name": "lcc"}} for n in range(ancestors)]
    forge(tmp_path / "old", first.tensors(), metadata)
    old = lcc.Memory.load(tmp_path / "old")
    wanted = ["refine"] * ancestors + ["compile"]
    assert [old.made["operation"], *(each["operation"] for each in old.lineage)] == wanted
    assert [each["digest"] for each in old.lineage] == [each["digest"] for each in metadata["lineage"]]
    assert old.made["settings"] is old.made["version"] is None
    old.save(tmp_path / "new")
    assert lcc.Memory.load(tmp_path / "new").metadata() == old.metadata()
    assert runner.invoke(cli.app, ["log", str(tmp_path / "new")]).exit_code == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m["made"].update(operation=""), "made.operation"),
        (lambda m: m["made"].pop("version"), "made has no version"),
        (lambda m: m["made"].update(settings=[]), "made.settings"),
        (lambda m: m["made"]["parents"].append("ab"), "nothing on the parent ab"),
        (lambda m: m["made"]["parents"].clear(), "of which nothing before it was made"),
        (lambda m: m["lineage"].pop(), "nothing on the parent"),
        (lambda m: m["lineage"].pop(0), "of which nothing before it|nothing on the parent"),
        (lambda m: m["lineage"].append(m["lineage"][0]), "twice"),
        (lambda m: m["lineage"].reverse(), "of which nothing before it|came after it"),
        (lambda m: m["lineage"][1]["parents"].append(m["lineage"][0]["digest"]), "came after it"),
        (lambda m: m["lineage"][1]["parents"].append(m["lineage"][1]["digest"]), "came after it"),
        (lambda m: m["lineage"][0].update(buffer_tokens="3"), "buffer_tokens"),
        (lambda m: m["lineage"][0].update(operation=""), "lineage.operation"),
        (lambda m: m["lineage"][0].pop("digest"), "digest"),
    ],
)  # fmt: skip
def test_a_history_that_is_no_tree_is_refused(family, tmp_path, change, named):
    metadata = metadata_of(family["child"])
    change(metadata)
    forge(tmp_path / "m", family["child"].tensors(), metadata)
    with pytest.raises(lcc.MemoryFileError, match=named):
        lcc.Memory.load(tmp_path / "m")


def test_the_files_of_all_ancestors_say_the_same(family, folder):
    assert verify_lineage(family["child"], folder) == 3
    assert verify_lineage(family["first"], folder) == 0
    done = runner.invoke(cli.app, ["verify", str(folder / "child.lcc.safetensors"), "--lineage", str(folder), "--json"])
    assert json.loads(done.stdout)["ancestors"] == 3


@pytest.mark.parametrize("missing", ["first", "other", "parent"])
def test_an_ancestor_without_a_file_is_named(family, folder, missing):
    (folder / f"{missing}.lcc.safetensors").unlink()
    with pytest.raises(lcc.MismatchError, match=f"{family[missing].digest[:12]} is not in the folder"):
        verify_lineage(family["child"], folder)


FIELDS = {"operation": "quantize", "settings": {"ratio": 9}, "version": "9", "compiler": {"name": "x"}}


def refused(memory, folder, field):
    """The parent is refused for this field, and for no other."""
    differs = rf"{memory.lineage[0]['digest'][:12]} differs from parent.lcc.safetensors in {field}$"
    with pytest.raises(lcc.MismatchError, match=differs):
        verify_lineage(memory, folder)


@pytest.mark.parametrize(("field", "value"), [*FIELDS.items(), ("buffer_tokens", 1)])
def test_every_field_that_a_descendant_says_is_compared(family, folder, field, value):
    lineage = copy.deepcopy(family["child"].lineage)
    lineage[0][field] = value
    refused(replace(family["child"], lineage=lineage), folder, field)


@pytest.mark.parametrize(("field", "value"), FIELDS.items())
def test_every_field_that_an_ancestor_says_is_compared(family, folder, field, value):
    """Its file is written anew, the digest included."""
    metadata = metadata_of(family["parent"])
    (metadata if field == "compiler" else metadata["made"])[field] = value
    forge(folder / "parent.lcc.safetensors", family["parent"].tensors(), metadata)
    refused(family["child"], folder, field)


def test_parents_of_ancestors_are_compared(family, folder):
    child, lineage = family["child"], copy.deepcopy(family["child"].lineage)
    lineage[0]["parents"].reverse()
    with pytest.raises(lcc.MismatchError, match="in parents"):
        verify_lineage(replace(child, lineage=lineage), folder)


@pytest.mark.parametrize("damage", ["tensors", "torn", "digest"])
def test_an_ancestor_whose_file_is_damaged_is_not_there(family, folder, damage):
    parent, path = family["parent"], folder / "parent.lcc.safetensors"
    if damage == "tensors":
        forge(path, {**parent.tensors(), "keys": parent.kv.keys * 2}, metadata_of(parent))
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(lcc.MismatchError, match=f"{parent.digest[:12]} is not in the folder") as error:
        verify_lineage(family["child"], folder)
    assert ("parent.lcc.safetensors" in str(error.value)) == (damage == "digest")


def test_one_of_two_files_of_the_same_tensors_is_enough(family, folder):
    parent = family["parent"]
    replace(parent, made=parent.made | {"version": "9"}).save(folder / "a copy.lcc.safetensors")
    assert verify_lineage(family["child"], folder) == 3


def test_log_shows_the_tree_and_what_changed(folder, family):
    path = folder / "child.lcc.safetensors"
    rows = json.loads(runner.invoke(cli.app, ["log", str(path), "--json"]).stdout)["history"]
    assert [row["digest"] for row in rows] == [each["digest"] for each in family["child"].with_ancestors()]
    assert rows[0]["changed"] == {"steps": [2, 3]}
    assert rows[0]["parents"] == [family["parent"].digest, family["first"].digest]
    shown = runner.invoke(cli.app, ["log", str(path)], env={"COLUMNS": "200"}).stdout
    assert "steps 2 → 3" in shown
    for row in rows:
        assert row["digest"][:12] in shown


def test_log_shows_no_control_characters(first, tmp_path):
    evil = step("\x1b[2Jupdate", {"\x1b[31m": "[red]"}, step("[bold]", {"\x1b[31m": 1}, first))
    evil.save(tmp_path / "m")
    shown = runner.invoke(cli.app, ["log", str(tmp_path / "m")], env={"COLUMNS": "200"}).stdout
    assert "\x1b" not in shown
    assert "[bold]" in shown
    assert "[red]" in shown


def test_the_tensors_of_an_ancestor_in_another_float_dtype_are_the_same(family, folder):
    wide = family["parent"].to("cpu", torch.float64)
    wide.save(folder / "parent.lcc.safetensors")
    assert verify_lineage(family["child"], folder) == 3
