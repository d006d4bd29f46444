"""What is known of a candidate after one first-token step: what routers and gates decide by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..modeling.first_tokens import entropy_of


@dataclass(frozen=True)
class Candidate:
    """A memory that may answer a question, as the model starts to answer behind it.

    Attributes:
        key: the memory's.
        similarity: how much of the question the retriever found, as ``Hit.share`` has it; higher is nearer.
        entropy: of the first token's distribution, in nats (CDLM, arXiv 2605.28889).
        divergence: KL(plain model || behind the memory) of the first token, in nats: how little the memory expects what
            the plain model says. It is near 0 where the memory changes nothing.
        hidden: (H,), the hidden state that predicts the first token.
        likeness: the cosine between the question and the nearest one that the memory asked itself; -1 if that is not
            looked up.
    """

    key: str
    similarity: float
    entropy: float
    divergence: float
    hidden: torch.Tensor
    likeness: float = -1.0


def divergences(logits: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """KL(softmax(base) || softmax(row)) of each row of (rows, vocabulary) logits, (rows,) float64, in nats.

    Args:
        base: (vocabulary,) logits of the plain model.
    """
    logs, of_base = logits.double().log_softmax(-1), base.double().log_softmax(-1)
    possible = of_base > -torch.inf
    return (of_base.exp() * (of_base - logs))[:, possible].sum(-1)


def candidates(
    keys: Sequence[str], similarities: Sequence[float], logits: torch.Tensor, hidden: torch.Tensor, base: torch.Tensor
) -> list[Candidate]:
    """The candidates of one question, in the order of their similarities.

    Args:
        logits, hidden: (candidates, vocabulary) and (candidates, H).
        base: (vocabulary,) logits of the plain model.
    """
    measured = zip(entropy_of(logits.double()).tolist(), divergences(logits, base).tolist(), strict=True)
    return [
        Candidate(key, similarity, entropy, divergence, state)
        for key, similarity, (entropy, divergence), state in zip(keys, similarities, measured, hidden, strict=True)
    ]
