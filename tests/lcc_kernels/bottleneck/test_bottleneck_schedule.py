"""The tiles that the Triton kernels visit: every visible pair exactly once, no other pair unmasked, none recompiled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcc_kernels import BottleneckLayout
from lcc_kernels.bottleneck import schedule
from tests.lcc_kernels.bottleneck.layouts import AWKWARD, small_layouts

sizes = st.sampled_from([2, 4, 8])


def spans_of(layout):
    return tuple(map(tuple, layout.spans.tolist()))


def visits_of_queries(layout, rows, keys):
    """How often each pair is counted, with the kernels' own masks: (total, total)."""
    visits = torch.zeros(layout.total, layout.total, dtype=torch.int64)
    own = own_part(layout)
    for start, stop, own_lo, own_hi, shared_lo, shared_hi in schedule.query_tiles(spans_of(layout), rows, keys):
        assert stop - start <= rows
        assert (own_hi - own_lo) % keys == 0
        visits[start:stop, own_lo:own_hi] += 1
        visits[start:stop, own_hi:stop] += own[start:stop, own_hi:stop]
        visits[start:stop, shared_lo:shared_hi] += 1
    return visits


def visits_of_keys(layout, rows, keys):
    visits = torch.zeros(layout.total, layout.total, dtype=torch.int64)
    own = own_part(layout)
    table, reduce = schedule.key_tiles(spans_of(layout), rows, keys)
    slots = [item[5] for item in table if item[5] >= 0]
    assert sorted(slots) == [slot for *_, lo, hi in reduce for slot in range(lo, hi)]
    for start, stop, first, masked, last, _ in table:
        assert stop - start <= keys
        visits[first:masked, start:stop] += own[first:masked, start:stop]
        visits[masked:last, start:stop] += 1
    return visits


def own_part(layout):
    """The part of the mask that is the row's own span, as the kernels compute it: first row of the span to the row."""
    start, stop = layout.spans[:, 0], layout.spans[:, 1]
    rows = torch.arange(layout.total)
    return (start.repeat_interleave(stop - start)[:, None] <= rows) & (rows <= rows[:, None])


@settings(max_examples=80, deadline=None)
@given(small_layouts, sizes, sizes)
def test_small_layouts(layout, rows, keys):
    wanted = layout.dense_mask().long()
    assert torch.equal(visits_of_queries(layout, rows, keys), wanted)
    assert torch.equal(visits_of_keys(layout, rows, keys), wanted)


@pytest.mark.parametrize("split", [16, 64])
@pytest.mark.parametrize("name", AWKWARD)
def test_split_reductions(name, split, monkeypatch):
    monkeypatch.setattr(schedule, "SPLIT_ROWS", split)
    layout = AWKWARD[name]
    assert torch.equal(visits_of_keys(layout, 16, 8), layout.dense_mask().long())


def test_the_longest_programs_start_first():
    """They fill the GPU best in this order (Graham's LPT rule)."""
    spans = spans_of(BottleneckLayout(5, 300, 128, (300, *[64] * 5)))
    table, _ = schedule.key_tiles(spans, 64, 128)
    rows = [last - first for _, _, first, _, last, _ in table]
    keys = [stop - own_lo + high - low for _, stop, own_lo, _, low, high in schedule.query_tiles(spans, 64, 64)]
    for work in (rows, keys):
        assert work == sorted(work, reverse=True)
        assert work[0] > work[-1]


def test_a_buffer_tile_is_split_into_programs_of_bounded_length():
    layout = BottleneckLayout(4, 16_384, 1_024, (16_384, *[256] * 32))
    table, reduce = schedule.key_tiles(spans_of(layout), 64, 128)
    shared = [last - first for _, _, first, _, last, slot in table if slot >= 0]
    assert max(shared) <= 4_096
    assert len(reduce) == 9
    assert all(slot_stop - slot_start <= schedule.SPLITS + 1 for *_, slot_start, slot_stop in reduce)


def test_context_tiles_are_never_listed_for_segments():
    layout = BottleneckLayout(5, 2_048, 128, (2_048, *[64] * 32))
    tiles = schedule.query_tiles(spans_of(layout), 64, 64)
    listed = sum((stop - start) * (stop - own_lo + high - low) for start, stop, own_lo, _, low, high in tiles)
    start, stop, low, high = layout.spans.unbind(-1)
    visible = ((stop - start) * (stop - start + 1) // 2 + (stop - start) * (high - low)).sum()
    assert listed <= 1.15 * visible


def test_the_longest_tile_starts_first():
    spans = spans_of(BottleneckLayout(3, 700, 90, (500, *[30] * 20)))
    rows = [stop - own_lo + high - low for _, stop, own_lo, _, low, high in schedule.query_tiles(spans, 64, 64)]
    keys = [last - first for _, _, first, _, last, _ in schedule.key_tiles(spans, 64, 64)[0]]
    assert rows == sorted(rows, reverse=True)
    assert keys == sorted(keys, reverse=True)
    assert min(len(set(rows)), len(set(keys))) > 3
