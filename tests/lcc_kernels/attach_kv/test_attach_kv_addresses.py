"""Where layers begin: even distances, and tables that are kept as long as something may read them."""

from __future__ import annotations

import pytest
import torch

from lcc_kernels.attach_kv import addresses

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("where", "itemsize", "expected"),
    [
        ((64,), 4, 0),
        ((64, 96), 4, 8),
        ((640, 320, 0), 2, -160),
        ((64, 96, 128, 161), 1, None),
        ((64, 66, 68), 4, None),
    ],
)
def test_step(where, itemsize, expected):
    assert addresses.step(where, itemsize) == expected


def test_a_table_is_found_by_what_it_holds():
    first = addresses.table((64, 96, 256), torch.device("cpu"))
    assert first.tolist() == [64, 96, 256]
    assert first.dtype == torch.int64
    assert addresses.table((64, 96, 256), torch.device("cpu")) is first
    assert addresses.table((64, 96, 272), torch.device("cpu")).tolist() == [64, 96, 272]


@pytest.fixture
def streams(monkeypatch):
    """The streams that tables were used on, of a GPU that is only pretended; two tables are kept."""

    class Table:
        def record_stream(self, stream):
            recorded.append(stream)

    recorded = []
    monkeypatch.setattr(addresses, "_upload", lambda where, device: Table())
    monkeypatch.setattr(addresses, "_kept", addresses._kept.__class__())
    monkeypatch.setattr(addresses, "_captured", {})
    monkeypatch.setattr(addresses, "KEPT", 2)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return recorded


def test_the_table_used_longest_ago_is_dropped_for_the_streams_that_read_it(streams):
    oldest = addresses.table((0, 5, 6), GPU)
    kept = addresses.table((0, 5, 7), GPU)
    assert addresses.table((0, 5, 6), GPU) is oldest
    addresses.table((0, 5, 8), GPU)
    assert addresses.is_known((0, 5, 6), GPU)
    assert not addresses.is_known((0, 5, 7), GPU)
    assert addresses.table((0, 5, 7), GPU) is not kept
    assert streams == ["stream of cuda:0"] * 5


def test_what_a_graph_captured_stays(streams, monkeypatch):
    addresses.table((0, 5, 6), GPU)
    with monkeypatch.context() as capture:
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        captured = addresses.table((0, 5, 6), GPU)
    for last in range(7, 12):
        addresses.table((0, 5, last), GPU)
    assert addresses.is_known((0, 5, 6), GPU)
    assert addresses.table((0, 5, 6), GPU) is captured
    assert len(streams) == 7
