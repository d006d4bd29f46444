"""How the kernel's work is divided over an H200's 132 processors."""

import pytest
import torch

from lcc_kernels.shared_prefix.tiles import Work, plan, tiles
from lcc_kernels.tiles import Tile

HALF = tiles(90, 128, torch.bfloat16)
PROCESSORS = 132


def programs(tile: Tile, splits: int, work: Work) -> int:
    return -(-work.rows // tile.rows) * splits * work.kv_heads


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_small_batches_over_long_prefixes_are_split_until_they_fill_the_gpu(batch):
    work = Work(kv_heads=8, rows=4 * batch, per_sequence=4, shared=4096, own=64)
    tile, splits = plan(HALF, work, PROCESSORS)
    assert splits > 1
    assert PROCESSORS / 3 < programs(tile, splits, work) <= PROCESSORS


def test_what_fills_the_gpu_is_not_split():
    _, splits = plan(HALF, Work(kv_heads=8, rows=4 * 512, per_sequence=4, shared=512, own=64), PROCESSORS)
    assert splits == 1


def test_a_merge_that_costs_more_than_the_keys_is_not_made():
    _, splits = plan(HALF, Work(kv_heads=2, rows=8, per_sequence=4, shared=60, own=20), PROCESSORS)
    assert splits == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("arch", [80, 86, 90, 100, 120])
def test_there_is_a_tile_for_every_width(arch, dtype):
    for head_dim in range(16, 129 if dtype == torch.float32 else 257):
        rows = [tile.rows for tile in tiles(arch, head_dim, dtype)]
        assert rows == sorted(rows)
        assert rows[0] == 16
