"""How the Triton kernel divides its work: pure functions of sizes and of the machine.

The times are estimates from instruction counts (SASS for sm_90, bfloat16, head_dim 128) and from an H200's data sheet,
in cycles of one of its 132 processors. None has been compared with a GPU yet: they rank plans, no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from ..tiles import Tile
from .batch import PrefixBatch

SPLITS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128)
PART = 2  # the fewest blocks of keys that a program is given of a tile that others share
READ = 16.0  # a row of keys and values, 512 bytes: 20 bytes a cycle from memory, twice that from the L2 cache
ISSUE, SCORE = 270.0, 0.2  # a step's own instructions; those of a score, and 512 products and sums for it
WAIT = 600.0  # what a step waits for itself (barriers, products, sums over a row): other programs run meanwhile
START = 2000.0  # until a program has read its lengths, its queries and its first keys
MERGE, MERGE_PART, MERGE_ROW = 2500.0, 600.0, 13.0  # a merge, and in it each part and each row of a part
ROUND = 64  # own rows, in whose multiples plans are made: they grow with every token


@dataclass(frozen=True)
class Work:
    """What one call does for each of ``kv_heads``: ``rows`` of queries, ``per_sequence`` of them a sequence.

    ``shared`` keys are spread over ``prefixes``; a sequence owns up to ``own`` more.
    """

    kv_heads: int
    rows: int
    per_sequence: int
    shared: int
    own: int
    prefixes: int = 1

    @classmethod
    def of(cls, b: PrefixBatch) -> Work:
        """That of the op. Lengths are on the device, unread: with any, each sequence is given a prefix for its own."""
        (batch, heads, q_len, _), (kv_heads, shared, _) = b.q.shape, b.shared_k.shape
        per_sequence = heads // kv_heads * q_len
        own = -(-b.own_k.shape[2] // ROUND) * ROUND
        prefixes = 1 if b.shared_lengths is None else batch
        return cls(kv_heads, batch * per_sequence, per_sequence, shared, own, prefixes)


@lru_cache(maxsize=4096)
def plan(choices: tuple[Tile, ...], work: Work, processors: int) -> tuple[Tile, int]:
    """The tile, and how many programs may share it.

    Own lengths are not known here. So the choice is the one that loses least, as a factor of the best for them, whether
    all sequences own ``work.own`` keys or a single one does.
    """
    options = list(product(choices, SPLITS))
    cases = [[cost(*option, work, others, processors) for option in options] for others in (work.own, 1)]
    least = [min(times) for times in cases]
    losses = [max(time / best for time, best in zip(each, least, strict=True)) for each in zip(*cases, strict=True)]
    return options[losses.index(min(losses))]


def cost(tile: Tile, splits: int, work: Work, others: int, processors: int) -> float:
    """Cycles until the last program ends, if one sequence owns ``work.own`` keys and the others at most ``others``."""
    row_tiles = -(-work.rows // tile.rows)
    rest, longest = blocks_of_tiles(tile, work, min(others, work.own))
    programs = work.kv_heads * ((row_tiles - 1) * parts_of(rest, splits) + parts_of(longest, splits))
    crowd = -(-programs // processors)
    waves = -(-crowd // occupancy(tile))
    before = (waves - 1) * _wave(tile, rest, splits, crowd / waves)  # the longest tile may be the last to start
    return before + _wave(tile, longest, splits, min(crowd, occupancy(tile)))


def _wave(tile: Tile, blocks: int, splits: int, crowd: float) -> float:
    """Cycles of programs that share tiles of so many blocks and start at once, ``crowd`` of them on a processor."""
    parts = parts_of(blocks, splits)
    return START + -(-blocks // parts) * max(step_alone(tile), crowd * step_busy(tile)) + merge(tile, parts)


def blocks_of_tiles(tile: Tile, work: Work, others: int) -> tuple[int, int]:
    """Blocks of a tile whose sequences own ``others`` keys each; and of the longest, one of which owns ``work.own``."""
    prefix, own = -(-work.shared // (work.prefixes * tile.keys)), -(-others // tile.keys)
    usual, most = min(-(-tile.rows // work.per_sequence), work.rows // work.per_sequence), most_sequences(tile, work)
    rest, longest = (min(count, work.prefixes) * prefix + count * own for count in (usual, most))
    return rest, longest - own + -(-work.own // tile.keys)


def most_sequences(tile: Tile, work: Work) -> int:
    """How many sequences a tile may have rows of."""
    rows, each = tile.rows, work.per_sequence
    most = max(1, rows // each) if rows % each == 0 or each % rows == 0 else (rows - 2) // each + 2
    return min(most, work.rows // each)


def parts_of(blocks: int, splits: int) -> int:
    """How many programs share a tile of so many blocks."""
    return min(max(blocks // PART, 1), splits)


def occupancy(tile: Tile) -> int:
    """Programs that registers and shared memory let a processor run at a time."""
    return 3 if tile.rows == 16 else 8 // tile.warps


def step_busy(tile: Tile) -> float:
    """What a block of keys keeps a processor busy for."""
    return max(READ * tile.keys, ISSUE + SCORE * tile.rows * tile.keys)


def step_alone(tile: Tile) -> float:
    """What a block of keys takes a program that has a processor for itself."""
    return WAIT + step_busy(tile)


def merge(tile: Tile, parts: int) -> float:
    """What the last of ``parts`` programs takes to add their sums."""
    return MERGE + parts * (MERGE_PART + MERGE_ROW * tile.rows) if parts > 1 else 0.0


def power_of_two(n: int) -> int:
    """The lowest that is not below ``n``."""
    return 1 << (n - 1).bit_length()
