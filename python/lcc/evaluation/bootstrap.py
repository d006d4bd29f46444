"""Intervals by resampling, paired because every figure is resampled with the same draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS, LEVEL = 2000, 0.95


def resample(groups: Sequence[str], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each item occurs in each of ``draws`` resamples: documents are drawn first, then their questions.

    Questions about one document stand or fall together, so that drawing questions alone would make intervals too
    narrow (hierarchical bootstrap; Davison and Hinkley 1997, section 3.8).

    Args:
        groups: the document of each item.

    Returns:
        (draws, items) int64; a document drawn twice brings twice its number of questions.
    """
    rng = np.random.default_rng(seed)
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    counts = np.zeros((draws, len(groups)), dtype=np.int64)
    for index in range(len(names)):
        places = np.flatnonzero(members == index)
        counts[:, places] = rng.multinomial(drawn[:, index] * len(places), np.full(len(places), 1 / len(places)))
    return counts


def means(counts: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """(draws,): the mean of ``values`` in each resample of ``resample``."""
    return counts @ np.asarray(values, dtype=float) / counts.sum(1)


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle ``level`` of the finite ``samples`` (percentile bootstrap), or None if there are none.

    It has no width where all values are equal, such as 100 %: then the number of questions says more.
    """
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
