"""Keys and values to remember: GradMem's retrieval task (arXiv 2603.13875, section 4), drawn without end."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

import torch

SYMBOLS = string.ascii_letters + string.digits
VOCABULARY = SYMBOLS + "!:?|"
IDS = {symbol: place for place, symbol in enumerate(VOCABULARY)}
# Characters of a key, and of a value; of what asks, and of what answers.
LENGTH, ASKING, ANSWERING = 2, len("?!kk:"), len("vv!|")


@dataclass(frozen=True)
class Batch:
    """Contexts ``!kk:vv!...`` and, of each, one key that is asked for: ``?!kk:`` and its answer ``vv!|``.

    Attributes:
        texts: (batch, 7 a pair) int64.
        reads: (batch, 9) int64, query and answer.
    """

    texts: torch.Tensor
    reads: torch.Tensor

    @property
    def answers(self) -> torch.Tensor:
        """Which tokens of ``reads`` are the answer, (batch, 9) bool."""
        return (torch.arange(ASKING + ANSWERING) >= ASKING).expand_as(self.reads)


def draw(rng: random.Random, pairs: int, batch: int) -> Batch:
    """A fresh batch; the keys of a context differ."""
    texts, reads = [], []
    for _ in range(batch):
        keys: list[str] = []
        while len(keys) < pairs:
            key = _symbols(rng)
            if key not in keys:
                keys.append(key)
        values = [_symbols(rng) for _ in keys]
        asked = rng.randrange(pairs)
        texts.append("".join(f"!{key}:{value}!" for key, value in zip(keys, values, strict=True)))
        reads.append(f"?!{keys[asked]}:{values[asked]}!|")
    return Batch(_ids(texts), _ids(reads))


def _symbols(rng: random.Random) -> str:
    return "".join(rng.choices(SYMBOLS, k=LENGTH))


def _ids(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[IDS[symbol] for symbol in text] for text in texts])
