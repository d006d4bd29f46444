import dataclasses
from struct import iter_unpack

import pytest
import torch
from hypothesis import given, settings

from lcc_kernels import BottleneckLayout
from lcc_kernels.bottleneck.layout import as_bytes
from tests.lcc_kernels.bottleneck.layouts import AWKWARD, role_mask, small_layouts


@settings(max_examples=60, deadline=None)
@given(small_layouts)
def test_every_pair_of_small_layouts_follows_the_roles(layout):
    wanted = role_mask(layout)
    assert torch.equal(layout.dense_mask(), wanted)
    rows = torch.arange(layout.total)
    assert torch.equal(layout.visible(rows[:, None], rows), wanted)


def test_single_indices():
    layout = BottleneckLayout(1, 2, 1, (2,))
    assert layout.visible(5, 3)
    assert not layout.visible(5, 1)
    with pytest.raises(IndexError, match=r"0 \.\.\. 6"):
        layout.visible(7, 0)


def test_rows_positions_and_adapter_tokens():
    layout = BottleneckLayout(2, 5, 3, (2, 4))
    (document,) = layout.documents
    assert layout.total == 2 + 5 + 3 + 2 + 2 + 4
    assert layout.lora_tokens() == slice(2, 10)
    assert document.segment_rows == (slice(12, 14), slice(14, 18))
    assert layout.position_ids().tolist() == [*range(10), 5, 6, 10, 11, *range(10, 14)]


def test_segments_stand_to_memory_as_at_inference():
    """Identity 7: everything that a segment sees is the inference row [P | B | segment] moved by n."""
    layout = BottleneckLayout(3, 11, 4, (6,))
    (document,) = layout.documents
    positions = layout.position_ids()
    seen = torch.cat([positions[document.copy_rows], positions[document.buffer_rows], positions[-6:]])
    assert torch.equal(seen - 11, torch.arange(3 + 4 + 6))


def test_packing_moves_rows_and_keeps_documents_apart():
    layouts = [BottleneckLayout(1, 2, 1, (3,)), BottleneckLayout(0, 4, 2, (1, 1), keep_prefix=False)]
    packed = BottleneckLayout.pack(layouts)
    assert packed.total == sum(layout.total for layout in layouts)
    assert torch.equal(packed.dense_mask(), torch.block_diag(*(layout.dense_mask() for layout in layouts)).bool())
    assert torch.equal(packed.position_ids(), torch.cat([layout.position_ids() for layout in layouts]))
    assert [(d.context_rows, d.buffer_rows) for d in packed.documents] == [
        (slice(1, 3), slice(3, 4)),
        (slice(8, 12), slice(12, 14)),
    ]
    with pytest.raises(ValueError, match="2 documents: take context_rows"):
        packed.lora_tokens()


def test_is_a_value():
    layout = BottleneckLayout(1, 2, 3, [4, 5])
    assert layout == BottleneckLayout(1, 2, 3, (4, 5))
    assert hash(layout) == hash(BottleneckLayout(1, 2, 3, (4, 5)))
    assert layout != BottleneckLayout(1, 2, 3, (4, 5), keep_prefix=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.documents = ()


@pytest.mark.parametrize("wrong", [(-1, 0, 0), (0, 0, 0, (1, -2)), (0, 1.5, 0)])
def test_refuses_wrong_lengths(wrong):
    with pytest.raises(ValueError, match="token counts must be integers"):
        BottleneckLayout(*wrong)


@pytest.mark.parametrize("name", AWKWARD)
def test_spans_partition_the_row(name):
    spans = AWKWARD[name].spans
    assert (spans[:, 0] < spans[:, 1]).all()
    edges = torch.tensor([0, *spans[:, 1].tolist()])
    assert torch.equal(spans[:, 0], edges[:-1])
    assert edges[-1] == AWKWARD[name].total


def test_thousands_of_segments_cost_no_square():
    layout = BottleneckLayout(5, 100_000, 6_250, (3,) * 5_000)
    assert layout.spans.shape == (5_002, 4)


@pytest.mark.parametrize("layouts", [[], [BottleneckLayout(2, 9, 4, (3, 5))] * 2])
def test_the_bytes_of_spans_are_their_numbers(layouts):
    spans = BottleneckLayout.pack(layouts).spans if layouts else torch.zeros(0, 4, dtype=torch.int64)
    rows = [tuple(row) for row in spans.tolist()]
    assert [*iter_unpack("=4q", as_bytes(spans))] == rows
    strided = torch.stack((spans, -spans), dim=2)[..., 0]
    assert [*iter_unpack("=4q", as_bytes(strided))] == rows
