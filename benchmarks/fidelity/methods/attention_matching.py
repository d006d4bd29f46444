"""Attention Matching: K, V and biases whose attention comes out as that over the text does (arXiv 2602.16284).

Of each head's keys some are kept, each with a bias that makes up for the attention that all keys got together, and
values that make the output what it was: both by least squares over the queries of samples that are read behind the
text. Layer by layer, each behind those that are matched already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from math import exp

import torch
from scipy.optimize import lsq_linear
from transformers import PreTrainedModel

from lcc.data.samples import Sample
from lcc.evaluation.methods import last_questions
from lcc.inference.reader import Reader
from lcc.modeling.generation import batch_rows
from lcc.modeling.kv import KV, decoder
from lcc.modeling.lora import frozen
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import completion_states, state_divergence

from .biased_attention import attending_with
from .kvpress_methods import moved
from .workbench import Held, Peer, PeerMethod

# Of the samples that are read behind the text.
MOST_TOKENS = 1 << 13
# Samples on which heads are compared, and budgets that a head may get, in shares of the mean one.
PROBED = 32
SHARES = (0, 1 / 4, 1 / 2, 1, 2, 4, 8)
# Of the mean of the diagonal, added to it.
RIDGE = 1e-9
# What a kept key's share of attention may be multiplied by, e^-3 to e^3 as in the authors' code: no value grows wild.
WEIGHTS = (exp(-3), exp(3))

# Picks keys by the queries' attention: from its Gram matrix (T, T) and its sums (T,), so many tokens' indices.
Selection = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
# Tokens of each K/V head of each layer.
Budgets = list[list[int]]


class AttentionMatching(PeerMethod):
    """Matches the text's K and V on what the model asked itself for LCC; the chat's prefix stays."""

    @contextmanager
    def holding(self, text: str) -> Iterator[Held]:
        """The matched K and V, at the positions that follow the full text."""
        model, prepared = self.model, self.context_of(text)
        prefix, ids = len(prepared.prefix_ids), [*prepared.prefix_ids, *prepared.context_ids]
        with frozen(model), torch.no_grad():
            data = self.distillation_data(prepared)
            samples = [sample for sample in data.train if sample.stream == "self_study"]
            began = time.monotonic()
            matching = Matching(model, prefill(model, ids), prefix, samples, KEYS[self.options["keys"]])
            matching.fit(BUDGETS[self.options["budgets"]](matching, prepared.buffer))
            kv, bias = matching.kept()
            visible = moved(model, kv, len(kv) - len(ids))
            seconds = time.monotonic() - began
            with attending_with(model, bias):
                questions = last_questions(data.self_questions)
                # A batch would share what all sequences see, by an attention without biases.
                yield Held(Reader(model, self.chat, visible), matching.nbytes, seconds, questions, batch=1)


class Matching:
    """A text's K and V while they are matched, all at their places: what is dropped has a bias of -inf.

    Args:
        text: keys rotated.
        prefix: how many of the first tokens stay as they are.
        samples: some of which, spread evenly, are read behind the text.
    """

    def __init__(self, model: PreTrainedModel, text: KV, prefix: int, samples: Sequence[Sample], select: Selection):
        self.model, self.text, self.prefix, self.select = model, text, prefix, select
        self.samples = thinned(samples, MOST_TOKENS)
        self.kv = replace(text, values=text.values.clone())
        self.bias = text.keys.new_zeros(text.keys.shape[:3])

    @property
    def nbytes(self) -> int:
        """Bytes of the K and V that are kept, and of the biases behind the prefix."""
        text, width = self.bias[:, :, self.prefix :], self.kv.keys.shape[3]
        pairs, biases = int(self.bias.isfinite().sum()), int(text.isfinite().sum())
        return (2 * width * pairs + biases) * self.bias.element_size()

    def fit(self, budgets: Budgets) -> None:
        """Match layer by layer, each behind those that are matched already."""
        for layer, sizes in enumerate(budgets):
            for number, (head, size) in enumerate(zip(self.heads(layer, self.queries()[layer]), sizes, strict=True)):
                self.replace(layer, number, head, size)

    def queries(self) -> list[torch.Tensor]:
        """Each layer's scaled queries while the samples are read, (heads, queries, head_dim)."""
        queries: list[list[torch.Tensor]] = [[] for _ in self.bias]
        rows = batch_rows(len(self.kv))
        with attending_with(self.model, self.bias) as layers:
            for batch in (self.samples[at : at + rows] for at in range(0, len(self.samples), rows)):
                completion_states(self.model, self.kv, batch)
                for of_layer, layer in zip(queries, layers, strict=True):
                    states = zip(layer.query, batch, strict=True)
                    of_layer += [query[:, : len(sample.input_ids)] for query, sample in states]
        scales = (layer.self_attn.scaling for layer in decoder(self.model).layers)
        return [torch.cat(of_layer, 1) * scale for of_layer, scale in zip(queries, scales, strict=True)]

    def heads(self, layer: int, queries: torch.Tensor) -> list[Head]:
        """A layer's K/V heads over the text, for the layer's ``queries``."""
        keys, values = (states[layer, :, self.prefix :] for states in (self.text.keys, self.text.values))
        # What stands side by side is a K/V head's group of queries.
        grouped = queries.reshape(len(keys), -1, queries.shape[2])
        return [Head(*states) for states in zip(grouped, keys, values, strict=True)]

    def replace(self, layer: int, number: int, head: Head, tokens: int) -> None:
        """Keep ``tokens`` of a head's K, with biases and values that match the text."""
        self.bias[layer, number, self.prefix :] = -torch.inf
        if tokens:
            kept, bias, values = head.match(tokens, self.select)
            self.bias[layer, number, self.prefix + kept] = bias
            self.kv.values[layer, number, self.prefix + kept] = values

    def restore(self, layer: int, number: int) -> None:
        """Give a head the text's own K and V again."""
        self.bias[layer, number] = 0
        self.kv.values[layer, number] = self.text.values[layer, number]

    def divergence(self, samples: Sequence[Sample]) -> float:
        """Mean KL from the full text over the samples' response tokens, in nats a token."""
        with attending_with(self.model, self.bias):
            states = completion_states(self.model, self.kv, samples)
        teacher = torch.cat([sample.teacher_hidden for sample in samples])
        weights = torch.full((len(states),), 1 / len(states), dtype=states.dtype)
        return state_divergence(self.model, states, teacher, weights, "kl").item()

    def kept(self) -> tuple[KV, torch.Tensor]:
        """K, V and biases of what is kept, heads that keep less filled up with some that a bias of -inf hides."""
        seen = self.bias.isfinite()
        most = int(seen.sum(-1).max())
        index = seen.int().argsort(dim=-1, descending=True, stable=True)[:, :, :most]
        wide = index[..., None].expand(-1, -1, -1, self.kv.keys.shape[3])
        kept = replace(self.kv, keys=self.kv.keys.gather(2, wide), values=self.kv.values.gather(2, wide))
        return kept, self.bias.gather(2, index)


def thinned(samples: Sequence[Sample], tokens: int) -> list[Sample]:
    """So many of the samples, short and long ones, that they have ``tokens`` tokens at the most; shorter ones first."""
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    return ordered[:: -(-sum(len(sample.input_ids) for sample in ordered) // tokens)]


def uniform(matching: Matching, tokens: int) -> Budgets:
    """As many for every head."""
    layers, heads = matching.bias.shape[:2]
    return [[tokens] * heads for _ in range(layers)]


def by_head(matching: Matching, tokens: int) -> Budgets:
    """As many in the mean, given to the heads that need them: least divergence if what each head adds to it adds up.

    The paper fits such budgets to a model once; these are of the text itself.
    """
    layers, heads, text = *matching.bias.shape[:2], len(matching.text) - matching.prefix
    sizes = sorted({min(round(share * tokens), text) for share in SHARES})
    samples = matching.samples[:: -(-len(matching.samples) // PROBED)]
    curves: list[dict[int, float]] = []
    for layer, queries in enumerate(matching.queries()):
        for number, head in enumerate(matching.heads(layer, queries)):
            curves.append({})
            for size in sizes:
                matching.replace(layer, number, head, size)
                curves[-1][size] = matching.divergence(samples)
            matching.restore(layer, number)
    budgets = least_sum(curves, tokens * layers * heads)
    return [list(budgets[layer * heads : (layer + 1) * heads]) for layer in range(layers)]


def least_sum(curves: Sequence[dict[int, float]], total: int) -> tuple[int, ...]:
    """A size of each curve, together at most ``total``, with the least sum of values."""
    # By the sizes' sum: the least sum of values so far, and its sizes.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for curve in curves:
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for (used, (value, before)), (size, added) in product(best.items(), curve.items()):
            option = (value + added, (*before, size))
            if used + size <= total:
                longer[used + size] = min(longer.get(used + size, option), option)
        best = longer
    return min(best.values())[1]


class Head:
    """A K/V head over the text, and what its queries attend to there.

    Args:
        queries: (n, head_dim), scaled.
        keys, values: (T, head_dim).
    """

    def __init__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor):
        self.scores = queries @ keys.T
        attention = self.scores.softmax(-1)
        self.outputs = (attention @ values).double()
        self.gram, self.sums = (attention.T @ attention).double(), attention.sum(0).double()

    def match(self, tokens: int, select: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which keys are kept, in their order, (tokens,) int64; their biases, (tokens,); values, (tokens, head_dim)."""
        kept = select(self.gram, self.sums, tokens).sort().values
        bias = mass_weights(self.gram[kept][:, kept], self.sums[kept]).log().to(self.scores.dtype)
        mixed = (self.scores[:, kept] + bias).softmax(-1).double()
        values = torch.linalg.solve(ridged(mixed.T @ mixed), mixed.T @ self.outputs)
        return kept, bias, values.to(self.scores.dtype)


def ridged(gram: torch.Tensor) -> torch.Tensor:
    """A Gram matrix that can be inverted though its columns be alike."""
    return gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def mass_weights(gram: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Weights w with which the kept keys' shares of the text's attention add up to 1: least |A w - 1|, (tokens,).

    Args:
        gram, sums: of A, (tokens, tokens) and (tokens,).
    """
    root = torch.linalg.cholesky(ridged(gram))
    right = torch.linalg.solve_triangular(root, sums[:, None], upper=False)[:, 0]
    return torch.from_numpy(lsq_linear(root.T.numpy(), right.numpy(), WEIGHTS).x)


def highest_attention(gram: torch.Tensor, sums: torch.Tensor, tokens: int) -> torch.Tensor:
    """The keys with the highest root mean square of attention (section 3.3)."""
    return gram.diagonal().topk(tokens).indices


def pursuit(gram: torch.Tensor, sums: torch.Tensor, tokens: int) -> torch.Tensor:
    """One key after the other, each the one most alike to the mass that is still missing (OMP, section 3.3)."""
    kept: list[int] = []
    missing = sums.clone()
    for _ in range(tokens):
        kept.append(int(missing.index_fill(0, torch.tensor(kept, dtype=torch.long), -torch.inf).argmax()))
        missing = sums - gram[:, kept] @ mass_weights(gram[kept][:, kept], sums[kept])
    return torch.tensor(kept)


KEYS: dict[str, Selection] = {"omp": pursuit, "highest_attention": highest_attention}
BUDGETS: dict[str, Callable[[Matching, int], Budgets]] = {"uniform": uniform, "by_head": by_head}
PEER = Peer(
    AttentionMatching,
    "Attention Matching, its budgets of heads fitted to the text, on LCC's data: our implementation",
    tuple({"keys": keys, "budgets": budgets} for keys in KEYS for budgets in BUDGETS),
)
