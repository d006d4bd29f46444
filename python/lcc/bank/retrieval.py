"""Which memories a question may be about: by words, by vectors, or by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch

from .index import Hit

# Ranks count as if so many others stood in front (Cormack et al., reciprocal rank fusion, SIGIR 2009).
FUSION = 60
# Of each ranking so many times the wanted documents are fused.
DEEPER = 4


class Retriever(Protocol):
    """Finds documents.

    Attributes:
        name: how it is called on the command line.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    def search(self, query: str, k: int, without: str | None = None) -> list[Hit]:
        """The ``k`` nearest documents, the nearest first; passages that read ``without`` are passed over."""
        ...


# Vectors of length 1 of texts, (texts, width) float32.
Encode = Callable[[Sequence[str]], torch.Tensor]


@dataclass(frozen=True)
class Passages:
    """All passages of a bank, as a retriever by vectors sees them.

    Attributes:
        vectors: (passages, width), of length 1.
        keys: the document of each.
        bodies: the text of each.
        asked: (passages,) bool, whether it is a self-asked question.
    """

    vectors: torch.Tensor
    keys: tuple[str, ...]
    bodies: tuple[str, ...]
    asked: torch.Tensor

    @cached_property
    def documents(self) -> tuple[str, ...]:
        """Every document that has a passage."""
        return tuple(dict.fromkeys(self.keys))

    @cached_property
    def owners(self) -> torch.Tensor:
        """(passages,) int64, the number of each one's document."""
        numbers = {key: number for number, key in enumerate(self.documents)}
        return torch.tensor([numbers[key] for key in self.keys], dtype=torch.int64)

    @cached_property
    def numbers(self) -> torch.Tensor:
        """(passages,) int64: passages that read the same have the same number."""
        return torch.tensor([self._numbered[body] for body in self.bodies], dtype=torch.int64)

    def number_of(self, body: str) -> int:
        """The number of the passages that read so; -1 if there are none."""
        return self._numbered.get(body, -1)

    @cached_property
    def _numbered(self) -> dict[str, int]:
        return {body: number for number, body in enumerate(dict.fromkeys(self.bodies))}


class WordRetriever:
    """BM25 over the passages of a bank.

    Args:
        search: that of the bank.
    """

    name = "bm25"

    def __init__(self, search: Callable[[str, int, str | None], list[Hit]]):
        self._search = search

    def search(self, query: str, k: int, without: str | None = None) -> list[Hit]:
        """See ``Retriever``."""
        return self._search(query, k, without)


class VectorRetriever:
    """Documents by the cosine between the question and their nearest passage.

    Args:
        passages: read at each search, so that documents that were added meanwhile are found.
    """

    def __init__(self, name: str, encode: Encode, passages: Callable[[], Passages]):
        self.name, self._encode, self._passages = name, encode, passages

    def search(self, query: str, k: int, without: str | None = None) -> list[Hit]:
        """See ``Retriever``; a score is a cosine."""
        passages = self._passages()
        if not passages.keys:
            return []
        cosines = passages.vectors @ self._encode([query])[0]
        hits: dict[str, Hit] = {}
        for index in cosines.argsort(descending=True, stable=True).tolist():
            if len(hits) == k:
                break
            key, body = passages.keys[index], passages.bodies[index]
            if key not in hits and body != without:
                hits[key] = Hit(key, float(cosines[index]), float(cosines[index]), body)
        return list(hits.values())


class FusedRetriever:
    """Reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the retrievers that found it."""

    def __init__(self, retrievers: Sequence[Retriever]):
        self._retrievers = tuple(retrievers)

    @property
    def name(self) -> str:
        """The names of all."""
        return "+".join(retriever.name for retriever in self._retrievers)

    def search(self, query: str, k: int, without: str | None = None) -> list[Hit]:
        """See ``Retriever``."""
        scores: dict[str, float] = {}
        first: dict[str, Hit] = {}
        for retriever in self._retrievers:
            for rank, hit in enumerate(retriever.search(query, DEEPER * k, without), 1):
                scores[hit.key] = scores.get(hit.key, 0.0) + 1 / (FUSION + rank)
                first.setdefault(hit.key, hit)
        nearest = sorted(scores, key=lambda key: (-scores[key], key))[:k]
        # Shares of different retrievers do not compare: this is one of what a document has that all find first.
        most = len(self._retrievers) / (FUSION + 1)
        return [replace(first[key], score=scores[key], share=scores[key] / most) for key in nearest]
