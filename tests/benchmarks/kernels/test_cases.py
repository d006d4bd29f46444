"""Every tensor of a benchmark's case is on the device that was asked for, and what takes turns is apart."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import attach_kv_cases, attach_kv_peers, linear_kl_cases, shared_prefix_cases

CASES = [
    *attach_kv_cases.GPU_CASES[::5],
    attach_kv_cases.GPU_CASES[-1],
    linear_kl_cases.GPU_CASES[0],
    shared_prefix_cases.GPU_CASES[0],
]


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return tensors(list(value.values()))
    return [x for each in value for x in tensors(each)] if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_device(case, monkeypatch):
    # The meta device stands for a GPU; it has no generator of its own.
    monkeypatch.setattr(torch, "Generator", lambda device=None: SimpleNamespace(manual_seed=lambda seed: None))
    made = case.tensors("meta")
    found = tensors(getattr(made, "arguments", made))
    assert len(found) >= 3
    assert {x.device.type for x in found} == {"meta"}


def test_attachments_that_take_turns_share_nothing(monkeypatch):
    monkeypatch.setattr(attach_kv_peers, "rotation", lambda moved, device: 3)
    case = attach_kv_cases.AttachCase("small", 2, 2, 16, 8, torch.float32, torch.float32, paged=True)
    ways = attach_kv_peers.calls(case, "torch", "cpu")
    assert len(ways["attach"]) == len(ways["loop"]) == 3
    places = {x.untyped_storage().data_ptr() for call in ways["attach"] for x in call.keywords["key_cache"]}
    assert len(places) == 3
    for attach, loop in zip(ways["attach"], ways["loop"], strict=True):
        attach()
        attached = [x.clone() for x in attach.keywords["key_cache"]]
        for cache in loop.keywords["key_cache"]:
            cache.zero_()
        loop()
        torch.testing.assert_close(attached, list(loop.keywords["key_cache"]))


def test_a_graph_can_take_pages():
    """Their caches are evenly spaced: the kernel then needs no table from the host."""
    case = attach_kv_cases.AttachCase("small", 4, 2, 16, 8, torch.float32, torch.float32, paged=True)
    caches = case.tensors("cpu")["key_cache"]
    steps = {b.data_ptr() - a.data_ptr() for a, b in pairwise(caches)}
    assert len(caches) == 4
    assert len(steps) == 1
