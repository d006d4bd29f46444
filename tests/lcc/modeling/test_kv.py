"""K and V know where they stand: what would rotate keys twice, or join tokens with a gap, is refused."""

from __future__ import annotations

import pytest
import torch

import lcc
from lcc.modeling.kv import KV
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SharedCache


@pytest.fixture
def read(llama):
    """Ten tokens that the model has read from position 3 on."""
    with torch.no_grad():
        return prefill(llama, range(5, 15), start=3)


def test_parts_keep_their_positions(read, llama):
    assert (read.start, read.end, len(read)) == (3, 13, 10)
    head, tail = read.head(4), read.tail(6)
    assert (head.start, head.end, tail.start, tail.end) == (3, 7, 7, 13)
    joined = tail.after(head)
    assert torch.equal(joined.keys, read.keys)
    assert joined.start == 3
    with torch.no_grad():
        more = prefill(llama, range(20, 22), read)
    assert (more.start, more.end) == (3, 15)
    assert SharedCache(read).kv().start == 3


def test_moving_is_undoing_and_rotating(read, llama):
    plain = read.unrotated(llama)
    assert plain.start is None
    torch.testing.assert_close(plain.rotated(llama, 3).keys, read.keys, rtol=1e-5, atol=1e-5)
    moved = read.moved(llama, 20)
    assert moved.start == 20
    with torch.no_grad():
        torch.testing.assert_close(moved.keys[0], prefill(llama, range(5, 15), start=20).keys[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(moved.values, read.values)


def test_what_does_not_go_together_is_refused(read, llama):
    plain = read.unrotated(llama)
    for wrong, message in (
        (lambda: read.rotated(llama, 0), "rotated already, from position 3"),
        (lambda: plain.unrotated(llama), "unrotated already"),
        (lambda: read.select([0, 2]), "keys are rotated"),
        (lambda: plain.end, "stand at no position"),
        (lambda: SharedCache(plain), "stand at no position"),
        (lambda: read.head(4).after(read.tail(6)), "do not go on"),
        (lambda: read.tail(5).after(read.head(4)), "do not go on"),
        (lambda: plain.after(read), "do not go on"),
        (lambda: read.after(plain), "do not go on"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert KV(plain.keys, plain.values).after(plain).start is None
    assert torch.equal(plain.select([0, 2]).keys, plain.keys[:, :, [0, 2]])


def test_a_memory_of_rotated_keys_is_refused(read):
    with pytest.raises(lcc.InputError, match=r"keys before rotation: call kv\.unrotated"):
        lcc.Memory(lcc.KVPayload(read), (), 1.0, 1, "", {}, {}, {})
