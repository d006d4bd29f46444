"""A GPU's schedule of the kernel's programs, simulated: what a plan costs for lengths that the plan does not know.

Programs start in the order of the grid wherever a processor has room. Those of a processor take turns: each advances at
the pace of a program alone, or at its share of the processor if that is slower.
"""

from __future__ import annotations

import heapq
from itertools import product

from lcc_kernels.shared_prefix.plan import START, Work, merge, occupancy, parts_of, step_alone, step_busy
from lcc_kernels.tiles import Tile


def simulate(tile: Tile, splits: int, work: Work, own: list[int], processors: int) -> float:
    """Cycles until the last program ends; ``own`` keys of each sequence."""
    programs = []
    tiles = [blocks_of(tile, work, own, first) for first in range(0, work.rows, tile.rows)]
    for _, part, blocks in product(range(work.kv_heads), range(splits), tiles):
        parts = parts_of(blocks, splits)
        if part < parts:
            steps = (part + 1) * blocks // parts - part * blocks // parts
            waits = START + (merge(tile, parts) if part == parts - 1 else 0)
            programs.append(steps + waits / step_alone(tile))
    return run(programs, step_alone(tile), step_busy(tile), occupancy(tile), processors)


def blocks_of(tile: Tile, work: Work, own: list[int], first_row: int) -> int:
    """Blocks of keys that the tile from ``first_row`` on reads; prefixes are alike, one a sequence or one for all."""
    last_row = min(first_row + tile.rows, work.rows) - 1
    first, last = first_row // work.per_sequence, last_row // work.per_sequence
    prefixes = min(last - first + 1, work.prefixes)
    shared = -(-work.shared // work.prefixes)
    return prefixes * -(-shared // tile.keys) + sum(-(-n // tile.keys) for n in own[first : last + 1])


def run(programs: list[float], alone: float, busy: float, room: int, processors: int) -> float:
    """Cycles for programs of so many steps each."""
    waiting = iter(programs)
    resident: list[list[float]] = [[] for _ in range(processors)]  # steps left of each program
    since = [0.0] * processors
    events: list[tuple[float, int]] = []

    def pace(processor: int) -> float:
        return max(alone, len(resident[processor]) * busy)

    def announce(processor: int) -> None:
        heapq.heappush(events, (since[processor] + min(resident[processor]) * pace(processor), processor))

    for _, processor in product(range(room), range(processors)):
        steps = next(waiting, None)
        if steps is not None:
            resident[processor].append(steps)
    for processor in range(processors):
        if resident[processor]:
            announce(processor)
    now = 0.0
    while events:
        now, processor = heapq.heappop(events)
        done = (now - since[processor]) / pace(processor)
        left = sorted(steps - done for steps in resident[processor])[1:]
        steps = next(waiting, None)
        resident[processor] = left if steps is None else [*left, steps]
        since[processor] = now
        if resident[processor]:
            announce(processor)
    return now
