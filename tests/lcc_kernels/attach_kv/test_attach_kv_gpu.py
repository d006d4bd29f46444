"""What only a GPU can show: attachments in a CUDA graph, and that nothing waits for the device."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch

import lcc_kernels as lk

from .attach_cases import tables

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.parametrize("backend", ["triton", "cuda"]),
]


@pytest.fixture
def arguments(backend):
    reason = lk.available_backends("attach_kv")[backend]
    if reason is not None:
        pytest.skip(reason)
    keys, values = torch.randn(2, 4, 2, 16, 64, device="cuda")
    caches = torch.zeros(2, 4, 2, 2, 32, 64, device="cuda")
    slots = torch.arange(16, device="cuda")
    return [keys, values, *caches, slots, *(x.cuda() for x in tables(16, 64, False))]


def test_a_graph_attaches_at_new_slots(arguments, backend):
    lk.attach_kv(*arguments, backend=backend, validate=False)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lk.attach_kv(*arguments, backend=backend, validate=False)
    caches, slots = arguments[2:4], arguments[4]
    slots += 11
    for cache in caches:
        cache.zero_()
    graph.replay()
    expected = [torch.zeros_like(cache) for cache in caches]
    lk.attach_kv(*arguments[:2], *expected, *arguments[4:], backend="reference")
    torch.testing.assert_close(caches, expected)


def test_a_graph_attaches_to_scattered_layers_that_were_attached_to_before(arguments, backend):
    if backend == "cuda":
        pytest.skip("its addresses are kernel arguments")
    scattered, new = ([torch.zeros(n + 1, 2, 32, 64, device="cuda")[:2] for n in (1, 9, 2, 30)] for _ in range(2))
    steps = {b.data_ptr() - a.data_ptr() for a, b in pairwise(scattered)}
    assert len(steps) > 1
    attach = partial(lk.attach_kv, backend=backend, validate=False)
    attach(*arguments[:2], scattered, *arguments[3:])
    expected = [x.clone() for x in scattered]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attach(*arguments[:2], scattered, *arguments[3:])
    for cache in scattered:
        cache.zero_()
    graph.replay()
    torch.testing.assert_close(scattered, expected)
    with pytest.raises(lk.BackendUnavailableError, match="scattered layers"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        attach(*arguments[:2], new, *arguments[3:])


def test_nothing_waits_for_the_device(arguments, backend):
    lk.attach_kv(*arguments, backend=backend, validate=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        lk.attach_kv(*arguments, backend=backend, validate=False)
        listed = [list(x) if x.ndim == 5 else x for x in arguments]
        lk.attach_kv(*listed, backend=backend, validate=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
