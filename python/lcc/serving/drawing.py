"""Tokens drawn from logits, each row in its own way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .engine import Sampling


class Draws:
    """The draws of one answer."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.sampling.temperature == 0

    def draw(self, logits: torch.Tensor) -> int:
        """A token by ``logits``, (vocabulary,)."""
        # In float64, and of differences: the smallest temperature that there is makes no infinity of the best logit.
        wide = logits.to(device="cpu", dtype=torch.float64)
        wide = (wide - wide.max()) / self.sampling.temperature
        kept = wide.topk(min(self.sampling.top_k or len(wide), len(wide)))
        probabilities = kept.values.softmax(-1)
        # The fewest tokens that together have a probability of top_p; one at least.
        beyond = probabilities.cumsum(-1) - probabilities >= self.sampling.top_p
        beyond[0] = False
        chosen = torch.multinomial(probabilities.masked_fill(beyond, 0.0), 1, generator=self._generator)
        return int(kept.indices[chosen])


def next_tokens(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    """The next token of each row, of ``logits`` (rows, vocabulary)."""
    best = logits.argmax(-1).tolist()
    return [token if one.greedy else one.draw(row) for token, one, row in zip(best, draws, logits, strict=True)]
