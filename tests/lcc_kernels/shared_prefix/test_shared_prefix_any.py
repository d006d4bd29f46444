"""Batches that nobody thought of: every backend against the reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lcc_kernels as lk
from tests.lcc_kernels.shared_prefix.batches import batch

BACKENDS = [name for name, reason in lk.available_backends("shared_prefix_attention").items() if reason is None]


@st.composite
def batches(draw):
    """Up to six sequences of any lengths, padding and prefixes; with a bias or without."""
    count, shared = draw(st.integers(1, 6)), draw(st.integers(0, 40))
    some = st.tuples(st.integers(0, shared), st.integers(0, shared)).map(lambda ends: (min(ends), max(ends)))
    spans = draw(st.none() | st.lists(some, min_size=count, max_size=count))
    kv_heads = draw(st.integers(1, 2))
    return batch(
        tuple(draw(st.lists(st.integers(0, 24), min_size=count, max_size=count))),
        shared=shared,
        heads=(kv_heads * draw(st.integers(1, 3)), kv_heads),
        q_len=draw(st.integers(1, 9)),
        head_dim=draw(st.sampled_from([16, 24])),
        starts=draw(st.none() | st.tuples(*[st.integers(0, 9)] * count)),
        prefixes=spans and tuple((first, stop - first) for first, stop in spans),
        biased=draw(st.booleans()),
        spare=draw(st.integers(0, 2)),
    )


def agrees(backend, inputs, sinks):
    wanted = {"return_lse": True, "return_entropy": True, "sinks": sinks}
    got, expected = (inputs.ours(name, **wanted) for name in (backend, "reference"))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@given(batches(), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_torch_agrees(inputs, sinks):
    agrees("torch", inputs, sinks)


if "triton" in BACKENDS:

    @given(batches(), st.integers(0, 50))
    @settings(max_examples=40, deadline=None)
    def test_triton_agrees(inputs, sinks):
        agrees("triton", inputs, sinks)
