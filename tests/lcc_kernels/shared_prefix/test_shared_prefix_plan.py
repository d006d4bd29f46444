"""How the kernel's work is divided over an H200's 132 processors."""

import random
from itertools import product

import pytest
import torch

from lcc_kernels.shared_prefix.batch import PrefixBatch
from lcc_kernels.shared_prefix.plan import SPLITS, Work, most_sequences, plan
from lcc_kernels.shared_prefix.tiles import tiles
from lcc_kernels.tiles import Tile
from tests.lcc_kernels.shared_prefix.batches import batch
from tests.lcc_kernels.shared_prefix.schedule import run, simulate

HALF = tiles(90, 128, torch.bfloat16)
PROCESSORS = 132


def decode(batch: int, shared: int, own: int, *, kv_heads: int = 8, per_sequence: int = 4, prefixes: int = 1) -> Work:
    return Work(kv_heads, batch * per_sequence, per_sequence, shared, own, prefixes)


def programs(tile: Tile, splits: int, work: Work) -> int:
    return -(-work.rows // tile.rows) * splits * work.kv_heads


def some_works() -> list[Work]:
    rng = random.Random(0)
    works = []
    while len(works) < 20:
        count, per_sequence = rng.choice([1, 2, 8, 32, 100]), rng.choice([1, 4, 7, 16, 80])
        work = decode(
            count, rng.choice([0, 1, 128, 700, 2048, 8192, 32768]), rng.choice([64, 320, 2048]),
            kv_heads=rng.choice([1, 2, 4, 8]), per_sequence=per_sequence, prefixes=rng.choice([1, 1, count]),
        )  # fmt: skip
        if work.rows * work.shared <= 2**24:
            works.append(work)
    return works


KNOWN = [
    decode(1, 2048, 64),
    decode(8, 8192, 2048),
    decode(32, 2048, 64),
    decode(32, 8192, 64),
    decode(256, 2048, 64),
    decode(256, 512, 2048),
    decode(1, 131072, 64, kv_heads=2, per_sequence=8),
    decode(16, 16 * 512, 64, per_sequence=80, prefixes=16),
]


@pytest.mark.parametrize("work", [*KNOWN, *some_works()], ids=str)
def test_no_plan_is_much_better_whatever_the_lengths(work):
    """In a simulated schedule, for lengths that the plan does not know: all alike, ragged, one long among short."""
    chosen, count = plan(HALF, work, PROCESSORS), work.rows // work.per_sequence
    alike, ragged = [work.own] * count, [work.own - work.own * i // (2 * count) for i in range(count)]
    for own in (alike, ragged, [1] * (count - 1) + [work.own]):
        times = {option: simulate(*option, work, own, PROCESSORS) for option in product(HALF, SPLITS)}
        assert times[chosen] <= 1.3 * min(times.values()), min(times, key=times.__getitem__)


def test_a_schedule_by_hand():
    """Programs of 3 steps and 1, 10 cycles a step alone and 16 in pairs."""
    together, in_turn, apart = (
        run([3.0, 1.0], alone=10, busy=8, room=room, processors=processors)
        for room, processors in ((2, 1), (1, 1), (1, 2))
    )
    assert (together, in_turn, apart) == (16 + 2 * 10, 3 * 10 + 10, 3 * 10)


@pytest.mark.parametrize("kv_heads", [2, 8])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_small_batches_over_long_prefixes_are_split_until_they_fill_the_gpu(batch, kv_heads):
    tile, splits = plan(HALF, decode(batch, 32768, 64, kv_heads=kv_heads), PROCESSORS)
    assert splits > 1
    assert programs(tile, splits, decode(batch, 32768, 64, kv_heads=kv_heads)) > PROCESSORS / 3


def test_what_fills_the_gpu_is_not_split():
    assert plan(HALF, decode(512, 512, 64), PROCESSORS)[1] == 1


def test_a_merge_that_costs_more_than_the_keys_is_not_made():
    assert plan(HALF, decode(2, 60, 20, kv_heads=2), PROCESSORS)[1] == 1


def test_many_rows_take_large_tiles():
    assert plan(HALF, decode(64, 8192, 64, per_sequence=64), PROCESSORS)[0].rows == 128


def test_plans_last_while_own_rows_grow():
    assert {Work.of(batch_of(own)).own for own in range(1, 64)} == {64}
    assert Work.of(batch_of(65)).own == 128


def batch_of(own: int) -> PrefixBatch:
    inputs = batch((own,), spare=0)
    return PrefixBatch(inputs.q, *inputs.shared, *inputs.own, inputs.lengths, None, None, None, None, 1.0)


@pytest.mark.parametrize("per_sequence", [1, 2, 3, 4, 7, 16, 17, 40, 128])
@pytest.mark.parametrize("rows", [16, 32, 64, 128])
def test_a_tile_has_room_for_all_of_its_sequences(rows, per_sequence):
    work = decode(300, 64, 64, per_sequence=per_sequence)
    tiles_sequences = [
        {row // per_sequence for row in range(first, min(first + rows, work.rows))}
        for first in range(0, work.rows, rows)
    ]
    most = max(map(len, tiles_sequences))
    assert most <= most_sequences(Tile(rows, 64, 4, 3), work) <= most + 1


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("arch", [80, 86, 90, 100, 120])
def test_there_is_a_tile_for_every_width(arch, dtype, entropy):
    for head_dim in range(16, 129 if dtype == torch.float32 else 257):
        rows = [tile.rows for tile in tiles(arch, head_dim, dtype, entropy)]
        assert rows == sorted(rows)
        assert rows[0] == 16
