"""Deltas: the new memory to the bit, smaller than a file of its own, and every part of one that is tampered with."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.memory.delta import Delta
from lcc.memory.file_format import DELTA_FORMAT
from lcc.memory.keys import write_key
from lcc.memory.payload import KVPayload
from lcc.memory.quantization import quantize_payload
from lcc.modeling.kv import KV
from lcc.utils.tensor_files import load_stored
from tests.support.forge import forge, places, replaced
from tests.support.plain_memories import plain_memory

runner = CliRunner()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture
def first(llama, tokenizer, text, monkeypatch):
    memory = plain_memory(llama, tokenizer, text, monkeypatch)[0]
    return replace(memory, settings={"steps": 3}, questions=tuple(f"Where is number {n}?" for n in range(40)))


def with_kv(memory, change):
    return replace(memory, payload=KVPayload(KV(change(memory.kv.keys), change(memory.kv.values))))


def appended(memory, more=3):
    grown = with_kv(memory, lambda x: torch.cat([x, torch.randn_like(x[:, :, :more])], 2))
    return replace(grown, questions=(*memory.questions, "And then?"), **memory.succeeded_by("update", {"ratio": 8}))


CHANGES = {
    "the same": lambda memory: memory,
    "appended": appended,
    "shortened": lambda memory: with_kv(memory, lambda x: x[:, :, :-2]),
    "changed": lambda memory: with_kv(memory, lambda x: x * 1.01),
    "changed and appended": lambda memory: appended(with_kv(memory, lambda x: x * 1.01)),
    "quantised": lambda memory: replace(memory, payload=quantize_payload(memory.kv_payload, "int8")),
    "in fp8": lambda memory: replace(memory, payload=quantize_payload(memory.kv_payload, "fp8")),
    "metadata alone": lambda memory: replace(memory, ratio=2.0, date="2026-01-02"),
    "another model": lambda memory: with_kv(memory, lambda x: torch.randn(2, 3, 5, 7, dtype=x.dtype)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("change", CHANGES)
def test_the_new_memory_to_the_bit(first, tmp_path, change, dtype):
    old = with_kv(first, lambda x: x.to(dtype))
    new = CHANGES[change](old)
    old.save(tmp_path / "old")
    new.save(tmp_path / "new")
    Delta.between(old, new).save(tmp_path / "delta")
    made = Delta.load(tmp_path / "delta").apply(lcc.Memory.load(tmp_path / "old"))
    made.save(tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == (tmp_path / "new").read_bytes()
    if change != "another model":
        sizes = {name: (tmp_path / name).stat().st_size for name in ("old", "new", "delta")}
        assert sizes["delta"] < min(sizes["old"], sizes["new"]), sizes


def test_only_what_was_appended_is_written(first):
    old = with_kv(first, torch.randn_like)
    new = appended(old, more=2)
    share = 2 / new.buffer_tokens
    assert Delta.between(old, new).nbytes < 1.5 * share * new.nbytes + 1000


def test_backwards_and_on(first):
    second = appended(first)
    third = appended(second)
    deltas = [Delta.between(*pair) for pair in ((first, second), (second, third), (third, first))]
    memory = first
    for delta in deltas:
        memory = delta.apply(memory)
    assert memory.digest == first.digest
    assert Delta.between(memory, first).header["old"] == Delta.between(memory, first).header["new"]


def test_numbers_that_are_no_float_of_their_own_stay(first):
    """Negative zero and subnormal numbers are bits like others."""
    odd = torch.tensor([-0.0, 1e-45, -1e-40, 0.0])
    new = with_kv(first, lambda x: odd.repeat(x.numel() // 4 + 1)[: x.numel()].reshape(x.shape))
    made = Delta.between(first, new).apply(first)
    assert torch.equal(made.kv.keys.view(torch.int32), new.kv.keys.view(torch.int32))


def test_unknown_fields_come_along(first):
    old, new = replace(first, extra={"a": 1, "b": [1]}), replace(first, extra={"b": [2], "c": {}})
    assert Delta.between(old, new).apply(old).extra == new.extra


@pytest.mark.parametrize("other", ["tensors", "metadata"])
def test_another_parent_is_refused(first, other):
    delta = Delta.between(first, appended(first))
    wrong = with_kv(first, lambda x: -x) if other == "tensors" else replace(first, ratio=3.0)
    with pytest.raises(lcc.MismatchError, match="made for another memory"):
        delta.apply(wrong)


@pytest.fixture
def file(first, tmp_path):
    Delta.between(first, appended(first)).save(tmp_path / "delta")
    return tmp_path / "delta"


def test_every_field_is_checked(first, file):
    """Whoever writes the delta anew, with the right digest, makes no other memory of it."""
    stored = load_stored(file, DELTA_FORMAT, apart=True)
    for value in ("tampered", 7, 0, -1, 10**12, [], {}, None):
        for way in places(stored.metadata):
            changed = replaced(json.loads(json.dumps(stored.metadata)), way, value)
            if changed == stored.metadata:
                continue
            forge(file, stored.tensors, changed, DELTA_FORMAT)
            with pytest.raises((lcc.MemoryFileError, lcc.MismatchError, lcc.InputError)):
                Delta.load(file).apply(first)


def test_every_compressed_part_is_checked(first, file):
    stored = load_stored(file, DELTA_FORMAT, apart=True)
    zeros = zlib.compress(bytes(100_000_000), 9)
    for name, packed in stored.tensors.items():
        content = packed.numpy().tobytes()
        for changed, named in (
            (content[:-1], "has not"), (content + b"x", "has not"), (b"", "has not"), (b"soup", "decompress"),
            (zeros, "has not|decompress|growth"), (zlib.compress(b"{}"), "has not"),
        ):  # fmt: skip
            parts = stored.tensors | {name: torch.tensor(list(changed), dtype=torch.uint8)}
            forge(file, parts, stored.metadata, DELTA_FORMAT)
            with pytest.raises(lcc.MemoryFileError, match=f"{name}.*({named})"):
                Delta.load(file).apply(first)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        (lambda parts: {**parts, "tensor.more": torch.zeros(1, dtype=torch.uint8)}, "tensor.more"),
        (lambda parts: {name: part for name, part in parts.items() if name != "tensor.keys"}, "tensor.keys"),
        (lambda parts: {**parts, "metadata": torch.zeros(4)}, "metadata"),
        (lambda parts: {**parts, "metadata": torch.zeros(2, 2, dtype=torch.uint8)}, "metadata"),
    ],
)
def test_parts_that_do_not_belong_are_named(file, parts, named):
    stored = load_stored(file, DELTA_FORMAT, apart=True)
    forge(file, parts(stored.tensors), stored.metadata, DELTA_FORMAT)
    with pytest.raises(lcc.MemoryFileError, match=named):
        Delta.load(file)


@pytest.mark.parametrize("shape", [[1 << 20, 1 << 20], [1 << 62, 1 << 62, 1 << 62], [10**300]])
def test_a_delta_that_would_take_all_memory_is_refused_before_it_does(first, file, shape):
    stored = load_stored(file, DELTA_FORMAT, apart=True)
    metadata = json.loads(json.dumps(stored.metadata))
    metadata["tensors"]["keys"]["shape"] = shape
    forge(file, stored.tensors, metadata, DELTA_FORMAT)
    with pytest.raises(lcc.InputError, match="more than 64 bytes"):
        Delta.load(file).apply(first)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(at=st.integers(0, 10**9), to=st.integers(0, 255))
def test_a_changed_byte(first, file, at, to):
    content = bytearray(file.read_bytes())
    before = content[at % len(content)]
    content[at % len(content)] = to
    other = file.with_name("other")
    other.write_bytes(bytes(content))
    if before == to:
        return
    try:
        made = Delta.load(other).apply(first)
    except (lcc.MemoryFileError, lcc.MismatchError, lcc.InputError):
        return
    # A blank of the header that reads as another blank.
    assert made.metadata() == Delta.load(file).apply(first).metadata()


def test_damage(first, file):
    content = file.read_bytes()
    for damaged in (content[:-1], content[:50], b"", content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(lcc.MemoryFileError):
            Delta.load(file)
    first.save(file)
    with pytest.raises(lcc.MemoryFileError, match=r"lcc-memory-2.*expected 'lcc-delta-1'"):
        Delta.load(file)


def test_a_delta_is_signed_like_a_memory(first, file, tmp_path):
    private, public = write_key(tmp_path / "key")
    with pytest.raises(lcc.MemoryFileError, match="is not signed"):
        Delta.load(file, trusted=[public])
    lcc.sign(file, private, detached=True)
    assert Delta.load(file, trusted=[public]).apply(first).digest == appended_digest(file, first)
    Delta.between(first, with_kv(first, lambda x: -x)).save(file)
    with pytest.raises(lcc.MemoryFileError, match="changed after"):
        Delta.load(file, trusted=[public])


def appended_digest(file, old):
    return Delta.load(file).apply(old).digest


def test_a_detached_signature_of_the_new_memory_fits_what_the_delta_makes(first, tmp_path):
    private, public = write_key(tmp_path / "key")
    new = appended(first)
    new.save(tmp_path / "new")
    lcc.sign(tmp_path / "new", private, detached=True)
    Delta.between(first, new).apply(first).save(tmp_path / "made")
    (tmp_path / "new.sig").rename(tmp_path / "made.sig")
    assert lcc.Memory.load(tmp_path / "made", trusted=[public]).digest == new.digest


def test_paths_are_no_memories(first, tmp_path):
    with pytest.raises(lcc.InputError, match="a memory is a str"):
        Delta.between("old", first)
    with pytest.raises(lcc.InputError, match="a memory is a str"):
        Delta.between(first, appended(first)).apply("old")


def test_the_commands(first, tmp_path):
    new = appended(first)
    for name, memory in (("old", first), ("new", new)):
        memory.save(tmp_path / name)

    def run(*words):
        return runner.invoke(cli.app, [str(word) for word in words])

    done = run("delta", tmp_path / "old", tmp_path / "new", "-o", tmp_path / "d", "--json")
    sizes = json.loads(done.stdout)
    assert sizes["bytes"] == (tmp_path / "d").stat().st_size < sizes["memory_bytes"]
    assert run("delta", tmp_path / "old", tmp_path / "new", "-o", tmp_path / "d").exit_code == 0
    assert run("delta", tmp_path / "old", tmp_path / "new", "-o", tmp_path / "new").exit_code == 4
    assert "is whole" in run("verify", tmp_path / "d").stdout
    unsigned = run("verify", tmp_path / "d", "--key", write_key(tmp_path / "key")[1])
    assert (unsigned.exit_code, "is not signed" in " ".join(unsigned.stderr.split())) == (4, True)
    lcc.sign(tmp_path / "d", tmp_path / "key")
    assert "is signed by" in run("verify", tmp_path / "d", "--key", tmp_path / "key.pub").stdout
    assert "it names signatures of" in run("verify", tmp_path / "d").stdout
    assert "neither a history nor a model" in run("verify", tmp_path / "d", "--lineage", tmp_path).stderr
    for words in (("inspect", "d"), ("log", "d"), ("delta", "d", "new", "-o", "other")):
        said = run(words[0], *(tmp_path / word if word in ("d", "new", "other") else word for word in words[1:]))
        assert "it is a delta, which lcc apply turns into a memory" in " ".join(said.stderr.split())
    swapped = run("apply", tmp_path / "d", tmp_path / "old", "-o", tmp_path / "other")
    assert "it is a memory" in " ".join(swapped.stderr.split())
    assert run("apply", tmp_path / "old", tmp_path / "d", "-o", tmp_path / "made").exit_code == 0
    assert (tmp_path / "made").read_bytes() == (tmp_path / "new").read_bytes()
    assert run("apply", tmp_path / "old", tmp_path / "d", "-o", tmp_path / "made").exit_code == 4
    assert run("apply", tmp_path / "old", tmp_path / "d", "-o", tmp_path / "d", "--force").exit_code == 4
    assert run("apply", tmp_path / "new", tmp_path / "d", "-o", tmp_path / "other").exit_code == 3
    assert run("apply", tmp_path / "old", tmp_path / "d", "-o", tmp_path / "old").exit_code == 4
    assert run("apply", tmp_path / "old", tmp_path / "d", "-o", tmp_path / "old", "--force").exit_code == 0
    assert (tmp_path / "old").read_bytes() == (tmp_path / "new").read_bytes()
