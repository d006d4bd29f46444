"""What stands of a text, token by token and in a row, in what a model wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Runs:
    """A text in which runs of other texts are looked for: a suffix automaton, so that time and space are linear.

    Args:
        ids: tokens of the text.
    """

    def __init__(self, ids: Sequence[int]):
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length = [-1], [0]
        # The state of each beginning of the text.
        self._beginnings = [0]
        for token in ids:
            self._beginnings.append(self._extended(self._beginnings[-1], token))

    def longest(self, written: Iterable[Sequence[int]]) -> list[int]:
        """For each token of the text, the longest run that ends with it and stands in one of ``written``; 0 if none."""
        found = [0] * len(self._next)
        for ids in written:
            self._follow(ids, found)
        # A state's runs end wherever those of the states that link to it end.
        by_length = sorted(range(1, len(found)), key=self._length.__getitem__)
        for state in reversed(by_length):
            if found[state]:
                link = self._link[state]
                found[link] = max(found[link], self._length[link])
        for state in by_length:
            found[state] = max(found[state], found[self._link[state]])
        return [found[state] for state in self._beginnings[1:]]

    def _follow(self, ids: Sequence[int], found: list[int]) -> None:
        """Note in ``found`` how long a run of each state stands in ``ids``."""
        state = length = 0
        for token in ids:
            while state and token not in self._next[state]:
                state = self._link[state]
                length = self._length[state]
            if token in self._next[state]:
                state = self._next[state][token]
                length += 1
                found[state] = max(found[state], length)

    def _extended(self, last: int, token: int) -> int:
        """Add a token behind the beginning ``last``; returns the state of the new one (Blumer et al. 1985)."""
        new = self._state({}, 0, self._length[last] + 1)
        at = last
        while at >= 0 and token not in self._next[at]:
            self._next[at][token] = new
            at = self._link[at]
        if at < 0:
            return new
        other = self._next[at][token]
        if self._length[at] + 1 == self._length[other]:
            self._link[new] = other
            return new
        copy = self._state(dict(self._next[other]), self._link[other], self._length[at] + 1)
        while at >= 0 and self._next[at].get(token) == other:
            self._next[at][token] = copy
            at = self._link[at]
        self._link[other] = self._link[new] = copy
        return new

    def _state(self, following: dict[int, int], link: int, length: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        return len(self._next) - 1


def recovered(longest: Sequence[int], run: int) -> int:
    """How many tokens stand in runs of at least ``run`` tokens.

    Args:
        longest: see ``Runs.longest``.
    """
    count, upto = 0, 0
    for end, length in enumerate(longest, 1):
        if length >= run:
            count += end - max(upto, end - length)
            upto = end
    return count
