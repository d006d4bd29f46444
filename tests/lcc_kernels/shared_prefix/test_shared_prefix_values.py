"""Every backend against plain attention in float64, sequence by sequence."""

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels import plain_attention
from tests.lcc_kernels.shared_prefix.batches import DEVICE, batch, one_by_one
from tests.support.float64 import assert_as_accurate

BACKENDS = [name for name, reason in lk.available_backends("shared_prefix_attention").items() if reason is None]
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
AWKWARD = {
    "decode": {"lengths": (5, 9, 1)},
    "one sequence": {"lengths": (7,)},
    "all alike": {"lengths": (6, 6, 6), "spare": 0},
    "empty sequences": {"lengths": (0, 4, 0)},
    "all empty": {"lengths": (0, 0)},
    "no room at all": {"lengths": (0, 0), "spare": 0},
    "left padding": {"lengths": (3, 8, 0), "starts": (5, 0, 8), "spare": 0},
    "left padding, one length": {"lengths": (4, 4), "starts": (3, 1)},
    "speculative": {"lengths": (12, 4, 3), "q_len": 4},
    "queries before the first own row": {"lengths": (1, 0, 17), "q_len": 5, "starts": (2, 3, 0)},
    "prefill": {"lengths": (17, 20, 37), "q_len": 17},
    "long": {"lengths": (70, 3, 41), "shared": 301},
    "prefix of one": {"lengths": (5, 2), "shared": 1},
    "no prefix": {"lengths": (5, 2), "shared": 0},
    "no prefix, rows that see nothing": {"lengths": (0, 2, 5), "shared": 0, "q_len": 3, "starts": (1, 2, 0)},
    "nothing at all": {"lengths": (0, 0), "shared": 0},
}


def supported(backend, dtype):
    interpreted = backend == "triton" and DEVICE == "cpu"
    return not (backend == "triton" and dtype == torch.float64) and not (interpreted and dtype == torch.bfloat16)


def check(inputs, backend):
    got = inputs.ours(backend)
    assert got.dtype == inputs.q.dtype
    assert got.is_contiguous()
    assert_as_accurate(got, one_by_one(inputs)[0], one_by_one(inputs.double())[0], FLOOR[inputs.q.dtype], backend)


@pytest.mark.parametrize("dtype", FLOOR, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", AWKWARD)
def test_as_accurate_as_torch(name, backend, dtype):
    if not supported(backend, dtype):
        pytest.skip("not a dtype of this backend here")
    check(batch(**AWKWARD[name], dtype=dtype), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (4, 1), (8, 1), (3, 1)], ids=str)
def test_head_groups(backend, heads, q_len):
    check(batch((9, 0, 4, 6), heads=heads, q_len=q_len), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("head_dim", [40, 64, 96, 128])
def test_head_dims(backend, head_dim):
    check(batch((9, 4), head_dim=head_dim), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_int32_lengths_and_last_dimensions_that_are_not_unit(backend):
    inputs = batch((9, 4), starts=(1, 2))
    wanted = inputs.ours("reference")

    def spread(x):
        return x[..., None].expand(*x.shape, 2).contiguous()[..., 0]

    arguments = [spread(x) for x in (inputs.q, *inputs.shared, *inputs.own)]
    got = lk.shared_prefix_attention(*arguments, inputs.lengths.int(), 0.3, backend, own_starts=inputs.starts.int())
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_scale(backend):
    inputs = batch((9, 4))
    arguments = inputs.q, *inputs.shared, *inputs.own, inputs.lengths
    got = lk.shared_prefix_attention(*arguments, backend=backend)
    wanted = lk.shared_prefix_attention(*arguments, 32**-0.5, "reference")
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", ["left padding", "speculative", "no prefix, rows that see nothing"])
def test_batches_too_large_for_one_block_of_scores(name, monkeypatch):
    """The ``torch`` backend one sequence at a time."""
    monkeypatch.setattr(plain_attention, "BLOCK_SCORES", 1)
    check(batch(**AWKWARD[name]), "torch")
