"""Attention Matching with what no memory holds: a bias a key, and heads of different lengths (arXiv 2602.16284).

The compiler ``attention_matching`` makes memories that any reader can hold: each head keeps as many keys, and biases
are folded into them. Its heads are matched here too, under an attention that adds biases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import torch
from transformers import PreTrainedModel

from lcc.compilers.attention_matching.compiler import self_asked
from lcc.compilers.attention_matching.heads import SELECTIONS, Head, Selection, least_squares, mass_weights
from lcc.evaluation.methods import last_questions
from lcc.inference.reader import Reader
from lcc.modeling.generation import batch_rows
from lcc.modeling.kv import KV, decoder
from lcc.modeling.lora import frozen
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states, token_divergence

from .biased_attention import attending_with
from .workbench import Held, Peer, PeerMethod

# Of the samples that are read behind the text.
MOST_TOKENS = 1 << 13
# Completions on which heads are compared, and budgets that a head may get, in shares of the mean one.
PROBED = 32
SHARES = (0, 1 / 4, 1 / 2, 1, 2, 4, 8)

# A head's keys, values and biases: so many of them, picked by the selection.
Match = Callable[[Head, int, Selection], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
# Tokens of each K/V head of each layer.
Budgets = list[list[int]]


def biased(head: Head, tokens: int, select: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys as they are, with biases that give them the attention of all keys, as the paper has it."""
    kept = select(head.attention, tokens).sort().values
    keys, bias = head.keys[kept], mass_weights(head.attention[:, kept]).log().to(head.keys.dtype)
    mixed = (head.queries @ keys.T + bias).softmax(-1)
    return keys, least_squares(mixed, head.attention @ head.values), bias


def folded(head: Head, tokens: int, select: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the compiler keeps: biases folded into the keys."""
    return *head.matched(tokens, select, fold=True), head.keys.new_zeros(tokens)


def plain(head: Head, tokens: int, select: Selection) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys as they are, and no biases."""
    return *head.matched(tokens, select, fold=False), head.keys.new_zeros(tokens)


class Matching:
    """A text's K and V while they are matched: a head's are followed by what a bias of -inf hides.

    Args:
        text: keys rotated; the last token right before that of a query.
        prefix: how many of the first tokens stay as they are.
        completions: read behind the text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        text: KV,
        prefix: int,
        completions: Sequence[Completion],
        select: Selection,
        match: Match = biased,
    ):
        self.model, self.text, self.prefix, self.completions = model, text, prefix, completions
        self.select, self.match = select, match
        self.kv = replace(text, keys=text.keys.clone(), values=text.values.clone())
        self.bias = text.keys.new_zeros(text.keys.shape[:3])

    @property
    def nbytes(self) -> int:
        """Bytes of the K and V that are kept, and of the biases behind the prefix if there are any."""
        pairs, matched = (int(part.isfinite().sum()) for part in (self.bias, self.bias[:, :, self.prefix :]))
        biases = matched if self.match is biased else 0
        return (2 * self.kv.keys.shape[3] * pairs + biases) * self.bias.element_size()

    def fit(self, budgets: Budgets) -> None:
        """Match layer by layer, each behind those that are matched already."""
        for layer, sizes in enumerate(budgets):
            for number, (head, size) in enumerate(zip(self.heads(layer, self.queries()[layer]), sizes, strict=True)):
                self.replace(layer, number, head, size)

    def queries(self) -> list[torch.Tensor]:
        """Each layer's scaled queries while the completions are read, (heads, queries, head_dim)."""
        queries: list[list[torch.Tensor]] = [[] for _ in self.bias]
        rows = batch_rows(len(self.kv))
        with attending_with(self.model, self.bias) as layers:
            for batch in (self.completions[at : at + rows] for at in range(0, len(self.completions), rows)):
                completion_states(self.model, self.kv, batch)
                for of_layer, layer in zip(queries, layers, strict=True):
                    states = zip(layer.query, batch, strict=True)
                    of_layer += [query[:, : len(completion.input_ids)] for query, completion in states]
        scales = (layer.self_attn.scaling for layer in decoder(self.model).layers)
        return [torch.cat(of_layer, 1) * scale for of_layer, scale in zip(queries, scales, strict=True)]

    def heads(self, layer: int, queries: torch.Tensor) -> list[Head]:
        """A layer's K/V heads over the text, for the layer's ``queries``."""
        keys, values = (states[layer, :, self.prefix :] for states in (self.text.keys, self.text.values))
        # What stands side by side is a K/V head's group of queries.
        grouped = queries.reshape(len(keys), -1, queries.shape[2])
        return [Head(*states) for states in zip(grouped, keys, values, strict=True)]

    def replace(self, layer: int, number: int, head: Head, tokens: int) -> None:
        """Keep ``tokens`` of a head's K, with values, and perhaps biases, that match the text."""
        places = slice(self.prefix, self.prefix + tokens)
        self.bias[layer, number, self.prefix :] = -torch.inf
        if tokens:
            matched = self.match(head, tokens, self.select)
            for into, states in zip((self.kv.keys, self.kv.values, self.bias), matched, strict=True):
                into[layer, number, places] = states

    def restore(self, layer: int, number: int) -> None:
        """Give a head the text's own K and V again."""
        self.bias[layer, number] = 0
        self.kv.keys[layer, number], self.kv.values[layer, number] = (
            self.text.keys[layer, number],
            self.text.values[layer, number],
        )

    def states(self, completions: Sequence[Completion]) -> torch.Tensor:
        """Last hidden states where the completions' responses are predicted, (response tokens, H)."""
        with attending_with(self.model, self.bias):
            return completion_states(self.model, self.kv, completions)

    def kept(self) -> tuple[KV, torch.Tensor]:
        """K, V and biases as far as the longest head goes, where the query's place stays."""
        most = int(self.bias.isfinite().sum(-1).max())
        return replace(self.kv.head(most), start=self.kv.end - most), self.bias[:, :, :most]


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
    probes = matching.completions[:: -(-len(matching.completions) // PROBED)]
    teacher = matching.states(probes)
    curves: list[dict[int, float]] = []
    for layer, queries in enumerate(matching.queries()):
        for number, head in enumerate(matching.heads(layer, queries)):
            curves.append({})
            for size in sizes:
                matching.replace(layer, number, head, size)
                divergence = token_divergence(matching.model, matching.states(probes), teacher)
                curves[-1][size] = divergence.mean().item()
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


class RaggedMatching(PeerMethod):
    """Matches the text's K and V on what the model asked itself for LCC; the chat's prefix stays."""

    @contextmanager
    def holding(self, text: str) -> Iterator[Held]:
        """The matched K and V, right before where the full text ends."""
        model, prepared = self.model, self.context_of(text)
        prefix, ids = len(prepared.prefix_ids), [*prepared.prefix_ids, *prepared.context_ids]
        with frozen(model), torch.no_grad():
            data = self.distillation_data(prepared)
            began, select = time.monotonic(), SELECTIONS[self.options["keys"]]
            matching = Matching(model, prefill(model, ids), prefix, self_asked(data, MOST_TOKENS), select)
            matching.fit(BUDGETS[self.options["budgets"]](matching, prepared.buffer))
            visible, bias = matching.kept()
            seconds = time.monotonic() - began
            with attending_with(model, bias):
                questions = last_questions(data.self_questions)
                # A batch would share what all sequences see, by an attention without biases.
                yield Held(Reader(model, self.chat, visible), matching.nbytes, seconds, questions, batch=1)


BUDGETS: dict[str, Callable[[Matching, int], Budgets]] = {"uniform": uniform, "by_head": by_head}
PEER = Peer(
    RaggedMatching,
    "Attention Matching with biases, its budgets of heads fitted to the text, on LCC's data: our implementation",
    tuple({"keys": keys, "budgets": budgets} for keys in SELECTIONS for budgets in BUDGETS),
)
