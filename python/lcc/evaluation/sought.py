"""What a leak test looks for: tokens, and how many of them stand in what a reader wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .recitation import Runs, recovered

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Sought:
    """Tokens that are looked for.

    Attributes:
        run: tokens in a row that count.
        runs: finds them.
    """

    ids: Ids
    run: int
    runs: Runs

    @classmethod
    def of(cls, ids: Sequence[int], run: int) -> Sought:
        """``ids``, of which ``run`` in a row count; of fewer tokens all."""
        return cls(tuple(ids), min(run, len(ids)), Runs(ids))


def recited(sought: Sequence[Sought], written: Iterable[Ids]) -> float:
    """Share of the tokens that stand in runs of what was written."""
    written = list(written)
    found = sum(recovered(each.runs.longest(written), each.run) for each in sought)
    return found / sum(len(each.ids) for each in sought)


def longest_run(sought: Sequence[Sought], written: Iterable[Ids]) -> int:
    """Tokens of the longest run in what was written."""
    written = list(written)
    return max(max(each.runs.longest(written)) for each in sought)


def without(sought: Sequence[Sought], words: Ids) -> Ids:
    """The last of ``words`` that hold no more than half a run in a row: what an attacker is given does not count."""
    while any(max(each.runs.longest([words])) > each.run // 2 for each in sought):
        words = words[1:]
    return words
