"""One K/V head: few keys and values whose attention comes out as that over many (Attention Matching, arXiv 2602.16284).

Of the keys some are kept. Weights make up for the attention that all keys got together, and values are fitted so that
the output is what it was: both by least squares over reference queries. The paper adds the logarithms of the weights to
the scores. A memory has no such biases: here they are folded into the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import exp

import torch

# Of the mean of a Gram matrix's diagonal, added to it.
RIDGE = 1e-6
# What a kept key's share of attention may be multiplied by, e^-3 to e^3 as in the authors' code: no value grows wild.
LEAST, MOST = exp(-3), exp(3)
# Steps of a least-squares problem with bounds: the error falls with their square.
BOUNDED_STEPS = 200

# Picks keys by the queries' attention (n, T): so many tokens' indices.
Selection = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Head:
    """What reference queries make of a K/V head.

    Attributes:
        queries: (n, head_dim), scaled, so that scores are their products with keys.
        keys, values: (T, head_dim).
    """

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @cached_property
    def attention(self) -> torch.Tensor:
        """Of each query to each key, (n, T)."""
        return (self.queries @ self.keys.T).softmax(-1)

    def matched(self, tokens: int, select: Selection, fold: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys that are kept, in their order, and their values, (tokens, head_dim).

        Args:
            fold: let the kept keys get the attention that all keys got together.
        """
        kept = select(self.attention, tokens).sort().values
        keys = self.keys[kept]
        if fold:
            keys = keys + mass_weights(self.attention[:, kept]).log().to(keys.dtype)[:, None] * self._constant()
        mixed = (self.queries @ keys.T).softmax(-1)
        return keys, least_squares(mixed, self.attention @ self.values)

    def _constant(self) -> torch.Tensor:
        """What raises the scores of all queries by 1, as nearly as one vector can: (head_dim,)."""
        return least_squares(self.queries, self.queries.new_ones(len(self.queries), 1))[:, 0]


def highest_attention(attention: torch.Tensor, tokens: int) -> torch.Tensor:
    """The keys with the highest root mean square of attention (section 3.3)."""
    return attention.square().sum(0).topk(tokens).indices


def pursuit(attention: torch.Tensor, tokens: int) -> torch.Tensor:
    """One key after the other, each the one most alike to the mass that is still missing (OMP, section 3.3)."""
    wide = attention.double()
    gram, sums = wide.T @ wide, wide.sum(0)
    kept: list[int] = []
    missing = sums.clone()
    for _ in range(tokens):
        missing[kept] = -torch.inf
        kept.append(int(missing.argmax()))
        missing = sums - gram[:, kept] @ _bounded(gram[kept][:, kept], sums[kept])
    return torch.tensor(kept, device=attention.device)


SELECTIONS: dict[str, Selection] = {"highest_attention": highest_attention, "omp": pursuit}


def least_squares(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """X (m, k) with ``given`` (n, m) @ X nearest to ``wanted`` (n, k), in the dtype of ``wanted``."""
    left, right = given.double(), wanted.double()
    return torch.linalg.solve(_ridged(left.T @ left), left.T @ right).to(wanted.dtype)


def mass_weights(attention: torch.Tensor) -> torch.Tensor:
    """Bounded weights w (tokens,) with which the kept keys' shares A (n, tokens) add up to 1: the least |A w - 1|."""
    wide = attention.double()
    return _bounded(wide.T @ wide, wide.sum(0))


def _bounded(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """w between ``LEAST`` and ``MOST`` with the least w' gram w / 2 - right' w (accelerated projected gradient)."""
    gram = _ridged(gram)
    weights = ahead = torch.linalg.solve(gram, right).clamp(LEAST, MOST)
    step, momentum = 1 / torch.linalg.matrix_norm(gram, 2), 1.0
    for _ in range(BOUNDED_STEPS):
        moved = (ahead - step * (gram @ ahead - right)).clamp(LEAST, MOST)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = moved + (momentum - 1) / following * (moved - weights)
        weights, momentum = moved, following
    return weights


def _ridged(gram: torch.Tensor) -> torch.Tensor:
    """A Gram matrix that can be inverted though its columns be alike."""
    return gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
