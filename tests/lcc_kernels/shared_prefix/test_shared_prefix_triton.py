"""What is particular to the Triton kernel; it runs in Triton's interpreter, in a process of its own."""

import pytest
import torch

import lcc_kernels as lk
from lcc_kernels.dispatch import interpreting
from lcc_kernels.shared_prefix import reference
from lcc_kernels.shared_prefix.batch import PrefixBatch
from lcc_kernels.tiles import Tile
from tests.lcc_kernels.shared_prefix.batches import DEVICE, SCALE, batch

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
runs_kernels = pytest.mark.skipif(not (interpreting() or GPU), reason="needs a GPU or the interpreter")


@runs_kernels
@pytest.mark.parametrize("splits", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "case",
    [
        {"lengths": (5, 40, 0), "shared": 70},
        {"lengths": (50,), "shared": 3, "q_len": 2},
        {"lengths": (0, 0, 7), "shared": 0, "q_len": 6, "starts": (0, 4, 2)},
    ],
    ids=["a prefix", "own keys", "rows that see nothing"],
)
def test_splits_add_up(case, splits, monkeypatch):
    """However many programs share a tile, more than it has keys included: the same sums, and twice the same bits."""
    from lcc_kernels.shared_prefix import launch

    monkeypatch.setattr(launch, "plan", lambda choices, work, processors: (choices[0], splits))
    inputs = batch(**case)
    once, twice = inputs.ours("triton"), inputs.ours("triton")
    assert torch.equal(once, twice)
    torch.testing.assert_close(once, inputs.ours("reference"))
    assert not any(counters.any() for counters in launch._counters.values())


@runs_kernels
@pytest.mark.parametrize("starts", [None, (-3, 2, 2**31 - 2)])
def test_own_rows_outside_the_cache_are_not_read(starts):
    """A GPU does not wait for lengths to be checked, so the kernel clips them."""
    from lcc_kernels.shared_prefix import launch

    inputs = batch((9, 9, 9), q_len=2, spare=0)
    own_starts = None if starts is None else torch.tensor(starts, device=DEVICE)
    lengths = torch.tensor([20, -5, 11], device=DEVICE)
    sequences = PrefixBatch(inputs.q, *inputs.shared, *inputs.own, lengths, own_starts, None, None, None, SCALE)
    torch.testing.assert_close(launch.forward(sequences), reference.forward(sequences))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_a_captured_graph_counts_for_itself(monkeypatch):
    from lcc_kernels.shared_prefix import launch

    monkeypatch.setattr(launch, "plan", lambda choices, work, processors: (choices[0], 4))
    inputs = batch((5, 40, 0), shared=300)
    eager = inputs.ours("triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = inputs.ours("triton")
    for _ in range(2):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, eager)
    assert torch.equal(inputs.ours("triton"), eager)


@pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
def test_lengths_are_not_compiled_in():
    from lcc_kernels.shared_prefix.triton_kernel import attention

    parameters = attention.params
    fixed = {"HEAD_DIM", "WIDTH", "ROWS", "KEYS", "SEQUENCES", "PART", "PRECISION"}
    assert {parameter.name for parameter in parameters if parameter.is_constexpr} == fixed
    general = {parameter.name for parameter in parameters if parameter.do_not_specialize}
    assert {"batch", "q_len", "shared_len", "max_len", "sinks"} <= general


def test_counters_grow_with_the_tiles(monkeypatch):
    from lcc_kernels.shared_prefix import launch

    cpu = torch.device("cpu")
    monkeypatch.setattr(launch, "_counters", {})
    few, many = launch._zero_counters(cpu, 3), launch._zero_counters(cpu, 5000)
    assert len(few) >= 3
    assert len(many) >= 5000
    assert not many.any()
    assert launch._zero_counters(cpu, 4000) is many


def test_float32_products_are_never_cut_to_tf32():
    from lcc_kernels.shared_prefix.launch import constants

    assert constants(64, torch.float32, Tile(32, 32, 4, 1), 1)["PRECISION"] == "tf32x3"


@runs_kernels
@pytest.mark.parametrize(
    ("dtype", "head_dim", "reason"), [(torch.float64, 32, "tensor-core"), (torch.float32, 160, "outside 16 ... 128")]
)
def test_refuses_what_it_cannot_run(dtype, head_dim, reason):
    with pytest.raises(lk.BackendUnavailableError, match=reason):
        batch((2, 1), head_dim=head_dim, dtype=dtype).ours("triton")
