"""Which candidate answers: the nearest, or the one that a small network prefers after one first-token step each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch

from ..errors import InputError, MemoryFileError
from .neighbors import Neighborhood
from .signals import Candidate

# Steps of L-BFGS, and the weight of the squared weights.
STEPS, DECAY = 300, 1e-5
# What a logarithm is taken of, at least.
LEAST = 1e-4
# What a rank is worth beside a vote.
TIE = 1e-6
# Steps after the last one that was better on what is held out.
PATIENCE = 30


class Router(Protocol):
    """Scores the candidates of a question.

    Attributes:
        name: how it is called on the command line.
        said: what is said of the candidate that it prefers.
        looks: whether it looks at the neighborhood, or at the likeness of candidates.
    """

    name: ClassVar[str]
    said: ClassVar[str]
    looks: ClassVar[bool]

    def scores(self, candidates: Sequence[Candidate], neighborhood: Neighborhood) -> list[float]:
        """One score a candidate; the highest is routed to."""
        ...


class ScoreRouter:
    """The retriever's first."""

    name: ClassVar[str] = "score"
    said: ClassVar[str] = "the nearest"
    looks: ClassVar[bool] = False

    def scores(self, candidates: Sequence[Candidate], neighborhood: Neighborhood) -> list[float]:
        """The similarities."""
        return [candidate.similarity for candidate in candidates]


class NeighborRouter:
    """kNN: the memory that asked itself most of the nearest questions; the similarity decides a tie (Cartridges++)."""

    name: ClassVar[str] = "neighbors"
    said: ClassVar[str] = "the one that asked the nearest questions"
    looks: ClassVar[bool] = True

    def scores(self, candidates: Sequence[Candidate], neighborhood: Neighborhood) -> list[float]:
        """Shares of the votes, and so little of the similarity that it only decides a tie."""
        ranks = {key: -place for place, key in enumerate(sorted({c.similarity for c in candidates}, reverse=True))}
        return [neighborhood.votes.get(one.key, 0.0) + TIE * ranks[one.similarity] for one in candidates]


@dataclass(frozen=True)
class Asked:
    """A question whose right candidate is known.

    Attributes:
        candidates: those that the retriever found.
        gold: the index of the memory that it was asked about; None: no candidate answers it.
        neighborhood: of the question.
    """

    candidates: tuple[Candidate, ...]
    gold: int | None
    neighborhood: Neighborhood


class Form(NamedTuple):
    """The form of a ``FirstTokenRouter``.

    Attributes:
        width: of the hidden layer; 0: there is none.
        hidden: how many entries of the hidden state are features.
    """

    width: int
    hidden: int


# Features besides the entries of the hidden state.
NUMBERS = 12
# Two layers with 128 entries of the hidden state are CDLM's; the paper names no width.
FORMS = {"linear": Form(0, 0), "cdlm": Form(64, 128)}


class FirstTokenRouter:
    """CDLM's internal router: a small network scores each candidate on its own, from what its first token looks like.

    The features are the similarity, the first token's entropy and entries of its hidden state (the paper's), its
    divergence from the plain model, the logarithms of the two, and the likeness (ours). Of each but the hidden state
    there is also how far it is from that of the best candidate. A score is the logarithm of the odds that the candidate
    answers.

    Args:
        form: a name of ``FORMS``.
        network: from features to a score.
        mean, deviation: (features,) of the training data.
    """

    name: ClassVar[str] = "first_token"
    said: ClassVar[str] = "preferred by the router"
    looks: ClassVar[bool] = True

    def __init__(self, form: str, network: torch.nn.Sequential, mean: torch.Tensor, deviation: torch.Tensor):
        self.form, self.network, self.mean, self.deviation = form, network, mean, deviation

    @classmethod
    def train(cls, form: str, asked: Sequence[Asked], held_out: Sequence[Asked], seed: int = 0) -> FirstTokenRouter:
        """Train on questions with a known candidate; the weights that are best on ``held_out`` are kept.

        Raises:
            InputError: no question has a right candidate among those that were found.
        """
        if not all(any(one.gold is not None for one in some) for some in (asked, held_out)):
            raise InputError("no self-asked question was found again by the retriever: the router has nothing to learn")
        inputs, labels = _rows(asked, FORMS[form].hidden)
        mean, deviation = inputs.mean(0), inputs.std(0).clamp_min(1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            router = cls(form, _network(inputs.shape[1], FORMS[form].width), mean, deviation)
        held_inputs, held_labels = _rows(held_out, FORMS[form].hidden)
        router._fit((inputs - mean) / deviation, labels, (held_inputs - mean) / deviation, held_labels)
        return router

    def _fit(
        self, inputs: torch.Tensor, labels: torch.Tensor, held_inputs: torch.Tensor, held_labels: torch.Tensor
    ) -> None:
        loss, parameters = torch.nn.BCEWithLogitsLoss(), list(self.network.parameters())
        optimizer = torch.optim.LBFGS(parameters, max_iter=1, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            penalty = sum(parameter.square().sum() for parameter in parameters)
            value = loss(self.network(inputs)[:, 0], labels) + DECAY * penalty
            value.backward()
            return value

        best, kept, waited = float("inf"), copy.deepcopy(self.network.state_dict()), 0
        for _ in range(STEPS):
            optimizer.step(closure)
            with torch.no_grad():
                measured = float(loss(self.network(held_inputs)[:, 0], held_labels))
            if measured < best:
                best, kept, waited = measured, copy.deepcopy(self.network.state_dict()), 0
            elif (waited := waited + 1) > PATIENCE:
                break
        self.network.load_state_dict(kept)

    @torch.no_grad()
    def scores(self, candidates: Sequence[Candidate], neighborhood: Neighborhood) -> list[float]:
        """Logarithms of odds."""
        if not candidates:
            return []
        features = _features(candidates, FORMS[self.form].hidden)
        return self.network((features - self.mean) / self.deviation)[:, 0].tolist()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file keeps."""
        return dict(self.network.state_dict()) | {"mean": self.mean, "deviation": self.deviation}

    @classmethod
    def of(cls, form: str, tensors: dict[str, torch.Tensor]) -> FirstTokenRouter:
        """The router of a file.

        Raises:
            MemoryFileError: the tensors are none of a router.
        """
        weights = dict(tensors)
        try:
            mean, deviation = weights.pop("mean"), weights.pop("deviation")
            network = _network(len(mean), FORMS[form].width)
            network.load_state_dict(weights)
            if mean.shape != deviation.shape or not NUMBERS <= len(mean) <= NUMBERS + FORMS[form].hidden:
                raise TypeError(f"its features are {len(mean)} and {len(deviation)}")
            if not all(one.dtype == torch.float32 and one.isfinite().all() for one in tensors.values()):
                raise TypeError("a number is not finite, or not in float32")
        except (KeyError, RuntimeError, TypeError) as error:
            raise MemoryFileError(f"the tensors are none of a router: {error}") from error
        return cls(form, network, mean, deviation)


def accuracy(router: Router, asked: Sequence[Asked]) -> float | None:
    """Share of the questions with a right candidate that are routed to it; None if there are none."""
    right: list[bool] = []
    for one in asked:
        if one.gold is not None:
            scores = router.scores(one.candidates, one.neighborhood)
            right.append(scores.index(max(scores)) == one.gold)
    return sum(right) / len(right) if right else None


def _network(features: int, width: int) -> torch.nn.Sequential:
    if not width:
        return torch.nn.Sequential(torch.nn.Linear(features, 1))
    return torch.nn.Sequential(torch.nn.Linear(features, width), torch.nn.GELU(), torch.nn.Linear(width, 1))


def _features(candidates: Sequence[Candidate], hidden: int) -> torch.Tensor:
    """(candidates, features) float32, ``hidden`` of them entries of the hidden state."""
    found = torch.tensor([[one.similarity, one.likeness] for one in candidates])
    said = torch.tensor([[one.divergence, one.entropy] for one in candidates])
    # More is better in each.
    sign = torch.tensor([1.0, -1.0])
    numbers = torch.cat((found, sign * said, sign * said.clamp_min(LEAST).log()), 1)
    states = torch.stack([candidate.hidden for candidate in candidates])[:, :hidden]
    return torch.cat((numbers, numbers.amax(0) - numbers, states.float().cpu()), 1)


def _rows(asked: Sequence[Asked], hidden: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All candidates of all questions: (rows, features), and (rows,) 1 for those that answer."""
    some = [one for one in asked if one.candidates]
    inputs = torch.cat([_features(one.candidates, hidden) for one in some])
    labels = torch.tensor([float(index == one.gold) for one in some for index in range(len(one.candidates))])
    return inputs, labels
