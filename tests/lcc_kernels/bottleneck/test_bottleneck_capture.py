"""The tables of the Triton kernels on their way to a GPU, and what a CUDA graph may capture; the GPU is pretended."""

from types import SimpleNamespace

import pytest
import torch

from lcc_kernels import BottleneckLayout
from lcc_kernels.bottleneck import schedule
from lcc_kernels.bottleneck.tiles import tiles

GPU = torch.device("cuda", 0)
TILES = tiles(90, 64, torch.bfloat16)
LAYOUT = BottleneckLayout(2, 300, 70, (40, 5))


class Machine:
    """A GPU whose memory is the CPU's: ``stream`` is the current one, ``copies`` says what was uploaded."""

    stream, capturing = 1, False

    def __init__(self):
        self.pinned, self.copies = [], []


@pytest.fixture
def machine(monkeypatch):
    made = Machine()

    def pin_memory(tensor):
        made.pinned.append(tensor)
        return tensor

    def to(tensor, device, non_blocking):
        assert not made.capturing
        assert device == GPU
        made.copies.append((any(tensor is other for other in made.pinned), non_blocking))
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: made.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=made.stream))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(schedule, "_recent", {})
    monkeypatch.setattr(schedule, "_captured", {})
    return made


def plan(layout=LAYOUT):
    return schedule.schedule(layout.spans, TILES, GPU)


def others(*numbers):
    for number in range(*numbers):
        plan(BottleneckLayout(0, 1, number))


def test_a_layout_is_one_copy_from_pinned_memory(machine):
    made = plan()
    assert plan() is made
    assert machine.copies == [(True, True)]
    assert made.query.tolist() == [list(row) for row in schedule.query_tiles(spans(), 128, 128)]
    assert made.row_start.dtype == made.reduce.dtype == torch.int32
    assert made.row_start.tolist() == [start for start, stop, *_ in spans() for _ in range(start, stop)]


def spans():
    return tuple(map(tuple, LAYOUT.spans.tolist()))


def test_each_stream_has_tables_of_its_own(machine):
    made = plan()
    machine.stream = 2
    assert plan() is not made
    assert len(machine.copies) == 2


def test_the_layout_not_used_for_longest_is_forgotten(machine):
    made, limit = plan(), schedule.RECENT
    others(limit - 1)
    assert plan() is made
    others(limit, 2 * limit - 1)
    assert plan() is made
    others(2 * limit, 3 * limit)
    assert plan() is not made


def test_a_graph_captures_what_has_run_and_keeps_it(machine):
    made = plan()
    machine.stream, machine.capturing = 2, True
    assert plan() is made
    machine.capturing = False
    others(schedule.RECENT)
    machine.capturing = True
    assert plan() is made


def test_a_graph_refuses_a_new_layout(machine):
    plan()
    machine.capturing = True
    with pytest.raises(RuntimeError, match=r"bottleneck_attention: .* run it once before the capture"):
        plan(BottleneckLayout(2, 300, 71, (40, 5)))
