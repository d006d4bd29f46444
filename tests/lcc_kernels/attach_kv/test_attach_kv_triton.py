"""What is particular to the Triton kernel; it runs in Triton's interpreter, in a process of its own."""

from __future__ import annotations

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.attach_kv.attachment import Attachment
from lcc_kernels.dispatch import interpreting

from .attach_cases import BACKENDS, DEVICE, check, check_foreign_slots, tables

pytest.importorskip("triton")
runs = pytest.mark.skipif("triton" not in BACKENDS, reason="needs a GPU or the interpreter")


@runs
@pytest.mark.parametrize("heads", [5, 8])
@pytest.mark.parametrize("memory_dtype", [torch.float32, torch.int8])
def test_heads_that_share_a_program(heads, memory_dtype, monkeypatch):
    from lcc_kernels.attach_kv import triton_kernel

    monkeypatch.setattr(triton_kernel, "_group", lambda *_: 3)
    check("triton", "paged_nhd", memory_dtype, shape=(2, heads, 5, 8))


@runs
@pytest.mark.skipif(not interpreting(), reason="a program or two of a GPU's many")
def test_groups_follow_the_work():
    from lcc_kernels.attach_kv.triton_kernel import _group

    cpu = torch.device("cpu")
    assert [_group(8, programs, cpu) for programs in (1, 2, 4, 100)] == [1, 2, 4, 8]


@runs
@pytest.mark.parametrize("slots", [[3, -1, 99], [-5, 20, 0], [4, 2, -4]])
@pytest.mark.parametrize("paged", [False, True])
def test_unchecked_slots_that_are_out_of_range_are_skipped(slots, paged):
    check_foreign_slots("triton", slots, paged, validate=False)


@runs
def test_caches_that_are_replaced_are_the_ones_written():
    """Scattered layers, whose table is kept: one is replaced, two change places, all are freed and made anew."""
    keys, slots = torch.randn(4, 2, 4, 8, device=DEVICE), torch.tensor([6, 0, 2, 1], device=DEVICE)

    def scattered():
        return [torch.zeros(layer**2 + 1, 2, 7, 8, device=DEVICE)[:1] for layer in range(4)]

    def attach(memory, layers, others):
        lk.attach_kv(memory, memory, layers, others, slots, *tables(4, 8, False), backend="triton")
        for layer, expected in zip(others, memory, strict=True):
            assert torch.equal(layer[0, :, slots], expected)

    layers, others = scattered(), scattered()
    attach(keys, layers, others)
    old = others[2]
    others[2] = torch.zeros(1, 2, 7, 8, device=DEVICE)
    attach(-keys, layers, others)
    assert torch.equal(old[0, :, slots], keys[2])
    others[0], others[3] = others[3], others[0]
    attach(keys, layers, others)
    for scale in range(2, 5):
        layers = others = old = None
        layers, others = scattered(), scattered()
        attach(scale * keys, layers, others)


@runs
def test_unaligned_caches():
    """Caches that begin between 16-byte boundaries, and layers at uneven distances."""
    store = torch.zeros(4, 2 * 7 * 8 + 8, device=DEVICE)
    views = [x[start : start + 112].view(1, 2, 7, 8) for x, start in zip(store, (1, 3, 1, 3), strict=True)]
    keys, slots = torch.randn(2, 2, 4, 8, device=DEVICE), torch.tensor([6, 0, 2, 1], device=DEVICE)
    lk.attach_kv(keys, keys, views[:2], views[2:], slots, *tables(4, 8, False), backend="triton")
    assert torch.equal(torch.stack(views[2:])[:, 0, :, slots], keys)
    assert store.count_nonzero() == 2 * keys.numel()


@runs
def test_alignment_is_promised_for_all_caches_or_for_none():
    """To the compiler, which then writes 16 bytes at a time."""
    from lcc_kernels.attach_kv.triton_kernel import constants

    memory, store = torch.zeros(2, 1, 2, 8, device=DEVICE), torch.zeros(4, 40, device=DEVICE)
    for offsets, promised in (((0, 4, 8, 0), True), ((0, 4, 9, 0), False)):
        caches = [x[start : start + 24].view(1, 1, 3, 8) for x, start in zip(store, offsets, strict=True)]
        others = torch.arange(2, device=DEVICE), *tables(2, 8, False), None, None, False, False
        attachment = Attachment(memory, memory, caches[:2], caches[2:], *others)
        assert constants(attachment)["ALIGNED"] is promised
