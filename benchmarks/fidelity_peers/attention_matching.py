"""Attention Matching: K, V and biases whose attention comes out as that over the text does (arXiv 2602.16284).

Of each head's keys some are kept, each with a bias that makes up for the attention that all keys got together, and
values that make the output what it was: both by least squares over the queries of samples that are read behind the
text. Layer by layer, each behind those that are matched already. Importing this file makes ``attention_matching`` a
transformers attention implementation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import exp

import torch
from scipy.optimize import lsq_linear
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from lcc.attention import attending
from lcc.checkpoint import Checkpoint, identity
from lcc.compile import surrogate_data
from lcc.context import build_context
from lcc.encode import frozen, read_text
from lcc.evaluation import Answers, Example, answer_after
from lcc.evaluation.methods import last_questions
from lcc.fingerprint import fingerprint
from lcc.generate import batch_rows
from lcc.kv import KV, decoder
from lcc.progress import Reporter
from lcc.queries import load_queries
from lcc.surrogate import Sample, response_hidden

from .presses import moved
from .workbench import Options, Peer, PeerMethod, Workbench

IMPLEMENTATION = "attention_matching"
# Of a head; more are thinned out evenly.
MOST_QUERIES = 1 << 15
# Of the mean of the diagonal: keeps the normal equations of alike keys solvable.
RIDGE = 1e-9
# What a kept key's share of attention may be multiplied by, e^-3 to e^3 as in the authors' code: no value grows wild.
WEIGHTS = (exp(-3), exp(3))


@dataclass
class Biased:
    """What a layer adds to the scores of the first keys, (kv_heads, tokens), and the queries it attended with last."""

    bias: torch.Tensor
    query: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Matched:
    """K and V (keys rotated), and what is added to the scores of each: (layers, kv_heads, tokens)."""

    kv: KV
    bias: torch.Tensor


# Picks keys by the queries' attention: from its Gram matrix (T, T) and its sums (T,), so many tokens' indices.
Selection = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


class AttentionMatching(PeerMethod):
    """Matches the text's K and V on samples that LCC trains on; the chat's prefix stays."""

    def __init__(self, name: str, bench: Workbench, options: Options):
        super().__init__(name, bench, options)
        self.surrogates = bench.surrogates

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer from the matched K and V, at the positions that follow the full text."""
        settings, queries, model = self.settings, load_queries(), self.model
        prepared = build_context(model, self.tokenizer, context, settings.ratio, settings.max_response_tokens)
        prefix, ids = len(prepared.prefix_ids), [*prepared.prefix_ids, *prepared.context_ids]
        compilation = identity(settings, prepared.sha256, fingerprint(model, self.tokenizer), queries)
        store = Checkpoint.shared(self.surrogates, compilation)
        with frozen(model), torch.no_grad():
            surrogate = surrogate_data(model, prepared, settings, queries, store, Reporter(False))
            samples = [sample for sample in surrogate.train if sample.stream in self.options["streams"]]
            began = time.monotonic()
            found = match(model, read_text(model, ids), prefix, prepared.buffer, samples, KEYS[self.options["keys"]])
            visible = moved(model, found.kv, len(found.kv) - len(ids))
            seconds = time.monotonic() - began
            with attending_with(model, found.bias):
                # A batch would share what all sequences see, by an attention without biases.
                texts = answer_after(model, self.chat, visible, examples, batch=1)
        held = visible.nbytes + found.bias[:, :, prefix:].nbytes
        return Answers(texts, held, seconds, last_questions(surrogate.self_questions))


def match(
    model: PreTrainedModel, text: KV, prefix: int, tokens: int, samples: Sequence[Sample], select: Selection
) -> Matched:
    """``tokens`` K and V a head in place of all those of ``text`` behind the first ``prefix``, which stay."""
    keys, values, bias = text.keys, text.values.clone(), text.keys.new_zeros(text.keys.shape[:3])
    layers, heads, _, width = keys.shape
    kept = torch.arange(prefix + tokens).repeat(layers, heads, 1)
    for layer in range(layers):
        queries = reference_queries(model, KV(keys, values), bias, layer, samples)
        # What stands side by side is a K/V head's group of queries.
        for head, mine in enumerate(queries.reshape(heads, -1, width)):
            chosen, added, fitted = match_head(
                mine, keys[layer, head, prefix:], values[layer, head, prefix:], tokens, select
            )
            bias[layer, head, prefix:] = -torch.inf
            kept[layer, head, prefix:] = chosen + prefix
            bias[layer, head, chosen + prefix], values[layer, head, chosen + prefix] = added, fitted
    index = kept[..., None].expand(-1, -1, -1, width)
    return Matched(KV(keys.gather(2, index), values.gather(2, index)), bias.gather(2, kept))


def reference_queries(
    model: PreTrainedModel, text: KV, bias: torch.Tensor, layer: int, samples: Sequence[Sample]
) -> torch.Tensor:
    """The scaled queries of ``layer`` while ``samples`` are read behind ``text``: (heads, queries, head_dim)."""
    found, rows = [], batch_rows(len(text))
    ordered = sorted(samples, key=lambda sample: len(sample.input_ids))
    with attending_with(model, bias) as layers:
        for batch in (ordered[start : start + rows] for start in range(0, len(ordered), rows)):
            response_hidden(model, text, batch)
            states = zip(layers[layer].query, batch, strict=True)
            found += [query[:, : len(sample.input_ids)] for query, sample in states]
    queries = torch.cat(found, 1) * decoder(model).layers[layer].self_attn.scaling
    return queries[:, :: -(-queries.shape[1] // MOST_QUERIES)]


def match_head(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, tokens: int, select: Selection
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which keys are kept, in their order, their biases and their values.

    Args:
        queries: (n, head_dim), scaled.
        keys, values: (T, head_dim).

    Returns:
        (tokens,) int64, (tokens,) and (tokens, head_dim).
    """
    scores = queries @ keys.T
    attention = scores.softmax(-1)
    gram, sums = (attention.T @ attention).double(), attention.sum(0).double()
    kept = select(gram, sums, tokens).sort().values
    bias = mass_weights(gram[kept][:, kept], sums[kept]).log().to(scores.dtype)
    mixed = (scores[:, kept] + bias).softmax(-1)
    fitted = torch.linalg.lstsq(mixed.double(), (attention @ values).double()).solution
    return kept, bias, fitted.to(values.dtype)


def mass_weights(gram: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Weights w with which the kept keys' shares of the text's attention add up to 1: least |A w - 1|, (tokens,).

    Args:
        gram, sums: of A, (tokens, tokens) and (tokens,).
    """
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    root = torch.linalg.cholesky(gram + ridge)
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


@contextmanager
def attending_with(model: PreTrainedModel, bias: torch.Tensor) -> Iterator[list[Biased]]:
    """Let ``model`` add ``bias``, (layers, kv_heads, tokens), to the scores of its first keys inside the block."""
    modules = [layer.self_attn for layer in decoder(model).layers]
    found = [Biased(mine) for mine in bias]
    for module, mine in zip(modules, found, strict=True):
        module.matching = mine
    try:
        with attending(model, IMPLEMENTATION):
            yield found
    finally:
        for module in modules:
            del module.matching


def biased_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, inside ``attending_with``.

    Args:
        query: (batch, heads, q_len, head_dim), rotated.
        key, value: (batch, kv_heads, kv_len, head_dim).
        attention_mask: (batch, 1, q_len, kv_len), added to the scores.

    Returns:
        (batch, q_len, heads, head_dim), and no weights.
    """
    module.matching.query = query
    bias = module.matching.bias
    added = pad(bias, (0, key.shape[2] - bias.shape[1])).repeat_interleave(query.shape[1] // len(bias), 0)
    mask = attention_mask + added[None, :, None].to(query.dtype)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, biased_attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)

KEYS: dict[str, Selection] = {"omp": pursuit, "highest_attention": highest_attention}
STREAMS = (["self_study"], ["self_study", "general"])
PEER = Peer(
    AttentionMatching,
    "Attention Matching, the same budget for every head, on LCC's data: our implementation",
    tuple({"keys": keys, "streams": streams} for keys in KEYS for streams in STREAMS),
)
