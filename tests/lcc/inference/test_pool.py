"""The pool of attached memories: what is kept, what goes first, and threads that want the same memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import lcc
from benchmarks.inference.answering_paths import random_memory
from lcc.inference.pool import AttachedPool
from lcc.text.chat_format import ChatFormat
from tests.support.tiny_models import tiny_model

PLENTY = 1 << 30


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def memories(model, tokenizer):
    torch.manual_seed(0)
    return [random_memory(model, tokenizer, ChatFormat.of(tokenizer), tokens, 4.0) for tokens in (40, 40, 40, 400)]


class Loads:
    """Attaches memories and counts how often each is loaded."""

    def __init__(self, model, memories):
        self.model, self.memories, self.counts = model, memories, [0] * len(memories)

    def __call__(self, number):
        def load():
            self.counts[number] += 1
            return lcc.attach(self.model, self.memories[number]).kv()

        return load


def asked(pool, loads, *numbers):
    return [pool.get(number, loads(number)) for number in numbers]


def test_it_holds_what_attach_makes(model, memories):
    pool, loads = AttachedPool(PLENTY), Loads(model, memories)
    for number, kv in enumerate(asked(pool, loads, 0, 1, 2, 3)):
        expected = lcc.attach(model, memories[number]).kv()
        assert kv.start == 0
        assert torch.equal(kv.keys, expected.keys)
        assert torch.equal(kv.values, expected.values)
        assert pool.get(number, loads(number)) is kv
    assert loads.counts == [1, 1, 1, 1]
    assert pool.nbytes == sum(lcc.attach(model, memory).kv().nbytes for memory in memories)


def test_the_least_recently_used_goes_first(model, memories):
    one = lcc.attach(model, memories[0]).kv().nbytes
    pool, loads = AttachedPool(2 * one), Loads(model, memories)
    asked(pool, loads, 0, 1, 0, 2)
    assert [number in pool for number in range(3)] == [True, False, True]
    assert pool.nbytes == 2 * one
    asked(pool, loads, 1)
    assert [number in pool for number in range(3)] == [False, True, True]
    assert loads.counts == [1, 2, 1, 0]


def test_what_is_larger_than_the_limit_drives_nothing_out(model, memories):
    pool, loads = AttachedPool(lcc.attach(model, memories[0]).kv().nbytes), Loads(model, memories)
    asked(pool, loads, 0, 3, 3, 0)
    assert loads.counts == [1, 0, 0, 2]
    assert 3 not in pool


def test_dropped(model, memories):
    pool, loads = AttachedPool(PLENTY), Loads(model, memories)
    asked(pool, loads, 0)
    pool.drop(0)
    pool.drop("never seen")
    assert pool.nbytes == 0
    asked(pool, loads, 0)
    assert loads.counts[0] == 2


def test_what_cannot_be_loaded_is_tried_again(model, memories):
    pool, loads = AttachedPool(PLENTY), Loads(model, memories)

    def fail():
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        pool.get(0, fail)
    asked(pool, loads, 0)
    with pytest.raises(lcc.InputError, match="at least 1"):
        AttachedPool(0)


def test_threads_that_want_one_memory_attach_it_once_and_hold_up_no_other(model, memories):
    pool, loads = AttachedPool(PLENTY), Loads(model, memories)
    begun, go = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go.wait(30)
        return loads(0)()

    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(pool.get, 0, slow)
        assert begun.wait(30)
        others = [threads.submit(pool.get, 0, loads(0)) for _ in range(3)]
        # While memory 0 is being loaded, another one is attached.
        threads.submit(pool.get, 1, loads(1)).result(30)
        go.set()
        assert all(other.result(30) is first.result(30) for other in others)
    assert loads.counts[:2] == [1, 1]
