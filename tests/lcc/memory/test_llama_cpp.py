"""States of llama.cpp: their bytes, read by a parser of the tests' own; and what the real server answers with them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import lcc
from lcc.memory.llama_cpp import VERSIONS, StateOptions, parse_state, placeholders, state_bytes
from lcc.modeling.kv import KV
from tests.support.plain_memories import plain_memory
from tests.support.tiny_models import tiny_model

LAYERS, HEADS, TOKENS, WIDTH = 2, 3, 5, 4
TEXT = "Mara lives in the quiet old town of Selby. Hugo works every day as a baker."
QUESTIONS = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo?"]


@dataclass
class State:
    """What a file says: K and V as (layers, tokens, kv_heads x head_dim)."""

    version: int
    tokens: list[int]
    positions: list[int]
    transposed: bool
    keys: np.ndarray
    values: np.ndarray


def parsed(content: bytes) -> State:
    place = 0

    def take(layout: str) -> tuple:
        nonlocal place
        place += struct.calcsize("<" + layout)
        return struct.unpack_from("<" + layout, content, place - struct.calcsize("<" + layout))

    magic, version, count = take("III")
    assert magic == 0x67677371
    tokens = list(take(f"{count}i"))
    streams, cells = take("II")
    assert cells == count
    cells = [take("iIi") for _ in range(count)]
    assert {cell[1:] for cell in cells} == {(1, 0)}
    transposed, layers = take("II")
    if version >= 4:
        assert take("II") == (0, 0)

    def tensor() -> np.ndarray:
        kind, size = take("iQ")
        letter = {0: "f", 1: "e"}[kind]
        row = size // struct.calcsize(letter)
        return np.array(take(f"{count * row}{letter}")).reshape(count, row)

    def turned() -> np.ndarray:
        kind, size, row = take("iII")
        letter = {0: "f", 1: "e"}[kind]
        assert struct.calcsize(letter) == size
        return np.array(take(f"{count * row}{letter}")).reshape(row, count).T

    keys = np.stack([tensor() for _ in range(layers)])
    values = np.stack([turned() if transposed else tensor() for _ in range(layers)])
    assert take(f"{streams - 1}I") == (0,) * (streams - 1)
    assert place == len(content)
    return State(version, tokens, [cell[0] for cell in cells], bool(transposed), keys, values)


def rows(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 1, 3).reshape(len(tensor), tensor.shape[2], -1).double().numpy()


def some_kv(dtype: torch.dtype = torch.float32) -> KV:
    torch.manual_seed(0)
    return KV(*torch.randn(2, LAYERS, HEADS, TOKENS, WIDTH).to(dtype), start=0)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kv", ["f16", "f32"])
@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize(("dtype", "streams"), [(torch.float32, 1), (torch.bfloat16, 2), (torch.float64, 5)])
def test_every_number_is_where_it_belongs(version, kv, flash_attn, dtype, streams):
    some = some_kv(dtype)
    options = StateOptions(kv, flash_attn, version, streams)
    state = parsed(state_bytes(some, options, neighbours=False, vocabulary=50))
    assert (state.version, state.transposed, state.positions) == (version, not flash_attn, [0, 1, 2, 3, 4])
    assert len(state.tokens) == TOKENS
    assert len(set(state.tokens)) == 1
    assert 0 <= state.tokens[0] < 50
    stored = torch.float16 if kv == "f16" else torch.float32
    np.testing.assert_array_equal(state.keys, rows(some.keys.to(stored)))
    np.testing.assert_array_equal(state.values, rows(some.values.to(stored)))


def test_pairs_of_channels_stand_side_by_side():
    some = some_kv()
    state = parsed(state_bytes(some, StateOptions("f32"), neighbours=True, vocabulary=50))
    keys = state.keys.reshape(LAYERS, TOKENS, HEADS, WIDTH)
    np.testing.assert_array_equal(keys[..., [0, 2, 1, 3]], rows(some.keys).reshape(keys.shape))
    np.testing.assert_array_equal(state.values, rows(some.values))


def test_tokens_may_stand_further_behind():
    some = some_kv()
    content = state_bytes(KV(some.keys, some.values, 7), StateOptions(), neighbours=False, vocabulary=50)
    assert parsed(content).positions == [7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="unrotated"):
        state_bytes(KV(some.keys, some.values), StateOptions(), neighbours=False, vocabulary=50)


def test_other_memories_have_other_placeholders():
    some, options = some_kv(), StateOptions()
    other = KV(some.keys, some.values + 1, 0)
    tokens = [parsed(state_bytes(kv, options, True, 1 << 30)).tokens for kv in (some, some, other)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_numbers_that_f16_cannot_hold_are_refused():
    some = some_kv()
    for name, kv in (("keys", KV(some.keys * 1e6, some.values, 0)), ("values", KV(some.keys, some.values * 1e6, 0))):
        with pytest.raises(lcc.InputError, match=rf"{name} reach .*, too large for f16: take kv f32"):
            state_bytes(kv, StateOptions("f16"), True, 50)
        state_bytes(kv, StateOptions("f32"), True, 50)


def test_only_our_own_states_are_read_and_replaced(llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    path = lcc.export(llama, memory, tmp_path, "llama-cpp")
    assert path == tmp_path / "state.ggsq"
    assert placeholders(path) == parsed(path.read_bytes()).tokens
    content = path.read_bytes()
    assert lcc.export(llama, memory, tmp_path / "deeper" / "report.bin", "llama-cpp").read_bytes() == content
    others = {
        "no sequence state": b"precious",
        "truncated": content[:20],
        "not one of this package's": struct.pack("<4sII3iI", b"qsgg", 4, 3, -1, 1, 2, 1) + content,
    }
    for reason, other in others.items():
        path.write_bytes(other)
        with pytest.raises(lcc.MemoryFileError, match=reason):
            placeholders(path)
        with pytest.raises(lcc.MemoryFileError, match=f"{reason}.*--force"):
            lcc.export(llama, memory, path, "llama-cpp")
        assert path.read_bytes() == other
    assert parse_state(path) == {"state_version": 4, "streams": 1}
    assert lcc.export(llama, memory, path, "llama-cpp", force=True).read_bytes() == content
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["deeper", "state.ggsq"]


def test_what_cannot_be_told_is_refused(llama, tokenizer, tmp_path, monkeypatch):
    memory, _ = plain_memory(llama, tokenizer, TEXT, monkeypatch)
    wrong = {
        "state_version is 1; the versions 2, 3, 4 can be written": {"state_version": 1},
        "kv": {"kv": "q8_0"},
        "flash_attn": {"flash_attn": "on"},
        "the target llama-cpp has no option k_v: it has kv, flash_attn, state_version": {"k_v": "f16"},
    }
    for reason, options in wrong.items():
        with pytest.raises(lcc.InputError, match=reason):
            lcc.export(llama, memory, tmp_path, "llama-cpp", **options)
    with pytest.raises(lcc.InputError, match="the target safetensors has no option kv: it has none"):
        lcc.export(llama, memory, tmp_path, "safetensors", kv="f16")
    longrope = tiny_model("longrope")
    with pytest.raises(lcc.InputError, match="rope of the type longrope"):
        lcc.export(longrope, plain_memory(longrope, tokenizer, TEXT, monkeypatch)[0], tmp_path, "llama-cpp")
    partial = tiny_model("llama", head_dim=16)
    memory, _ = plain_memory(partial, tokenizer, TEXT, monkeypatch)
    monkeypatch.setattr("lcc.memory.llama_cpp.kv_shape", lambda config: (3, 2, 32))
    with pytest.raises(lcc.InputError, match="a llama that turns 16 of 32"):
        lcc.export(partial, memory, tmp_path, "llama-cpp")
    monkeypatch.setattr(partial.config, "model_type", "new")
    with pytest.raises(lcc.InputError, match="the channels of new is not known here, but of gemma, llama"):
        lcc.export(partial, memory, tmp_path, "llama-cpp", verify=False)
    assert not list(tmp_path.iterdir())
