"""Methods that read K of the text's own tokens: truncation, and pruning by surprise."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.functional import cross_entropy

from lcc.inference.reader import Reader
from lcc.modeling.prefill import prefill

from .workbench import Held, Peer, PeerMethod


class KeptTokens(PeerMethod):
    """The model reads the kept tokens, one behind the other, as if they were the text."""

    @abstractmethod
    def kept(self, ids: list[int], tokens: int) -> list[int]:
        """``tokens`` of ``ids``, in their order."""

    @contextmanager
    def holding(self, text: str) -> Iterator[Held]:
        """Prefix and kept tokens."""
        began = time.monotonic()
        with torch.no_grad():
            kept = self.kept(self.chat.ids(text), self.tokens(text))
            visible = prefill(self.model, [*self.chat.prefix_ids, *kept])
        reader = Reader(self.model, self.chat, visible)
        yield Held(reader, visible.nbytes, time.monotonic() - began, batch=self.batch)


class First(KeptTokens):
    def kept(self, ids: list[int], tokens: int) -> list[int]:
        return ids[:tokens]


class Last(KeptTokens):
    def kept(self, ids: list[int], tokens: int) -> list[int]:
        return ids[len(ids) - tokens :]


class Surprising(KeptTokens):
    """Keeps the tokens of the highest -log p(token | all before it) under the model itself.

    LLMLingua (arXiv 2310.05736, section 4.2) prunes by a small model's perplexity, segment by segment with budgets.
    """

    def kept(self, ids: list[int], tokens: int) -> list[int]:
        before = [*self.chat.prefix_ids, *ids]
        logits = self.model(torch.tensor([before], device=self.model.device), use_cache=False).logits[0]
        targets = torch.tensor(ids, device=self.model.device)
        surprise = cross_entropy(logits[-len(ids) - 1 : -1], targets, reduction="none")
        return targets[surprise.topk(tokens).indices.sort().values].tolist()


FIRST = Peer(First, "truncation: the first tokens")
LAST = Peer(Last, "truncation: the last tokens")
SURPRISING = Peer(Surprising, "LLMLingua's idea, with the model's own surprise: our implementation")
