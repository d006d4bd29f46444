"""A long text read in chunks whose activations are computed again in the backward; the gradient stays exact.

A chunk's K and V depend on the parameters and on the K and V of the chunks before it, and nothing else. So K and V of
all chunks are kept, with their gradients while the backward runs, and of everything else one chunk's layer inputs and
one layer at a time (checkpointing inside checkpointing, arXiv 1604.06174). It costs two more forwards of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .attention import attending
from .kv import KV, decoder
from .module_patching import running

# The implementation that takes a boolean mask as one; eager would add it to the scores.
ATTENTION = "sdpa"

_once_more = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def prefill_in_chunks(
    model: PreTrainedModel,
    chunks: list[torch.Tensor],
    past: KV,
    adapter: Callable[[], AbstractContextManager],
) -> KV:
    """K and V, rotated, of the last chunk, differentiable in the chunks and in what ``adapter`` switches on.

    Args:
        chunks: embeddings (1, tokens, H), one behind the other and behind ``past``.
        past: K and V, rotated, of what comes before.
        adapter: makes the context in which layers run.
    """
    read = [past]
    for chunk in chunks:
        states = [tensor for kv in read for tensor in (kv.keys, kv.values)]
        keys, values = _once_more(partial(_read, model, adapter), chunk, *states)
        read.append(KV(keys, values, read[-1].end))
    return read[-1]


def _read(
    model: PreTrainedModel, adapter: Callable[[], AbstractContextManager], chunk: torch.Tensor, *states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of a chunk after ``states``, keys and values in turn."""
    start, length = sum(keys.shape[2] for keys in states[::2]), chunk.shape[1]
    positions = torch.arange(start, start + length, device=chunk.device)
    mask = torch.ones(length, start + length, dtype=torch.bool, device=chunk.device).tril(start)
    new: list[tuple[torch.Tensor, torch.Tensor]] = []
    layers = decoder(model)
    inside = partial(_inside, model, adapter)
    runs = [partial(_layer, layer.forward, n, states, inside, new) for n, layer in enumerate(layers.layers)]
    with attending(layers, ATTENTION), running(layers.layers, runs):
        layers(inputs_embeds=chunk, position_ids=positions[None], attention_mask=mask[None, None], use_cache=False)
    keys, values = zip(*new, strict=True)
    return torch.cat(keys), torch.cat(values)


@contextmanager
def _inside(model: PreTrainedModel, adapter: Callable[[], AbstractContextManager]) -> Iterator[None]:
    """What a layer runs in, in the forward and when the backward computes it again."""
    with attending(model, ATTENTION), adapter():
        yield


def _layer(
    forward: Callable[..., torch.Tensor],
    number: int,
    states: tuple[torch.Tensor, ...],
    inside: Callable[[], AbstractContextManager],
    new: list[tuple[torch.Tensor, torch.Tensor]],
    hidden: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """One layer of a chunk; its K and V are appended to ``new``."""

    def run(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        past = _Past(states, number)
        with inside():
            out = forward(hidden, **options | {_cache_argument(options): past})
        return out, past.keys, past.values

    out, keys, values = _once_more(run, hidden)
    new.append((keys, values))
    return out


def _cache_argument(options: Mapping[str, Any]) -> str:
    """What a layer calls its cache."""
    return "layer_past" if "layer_past" in options else "past_key_values"


class _Past:
    """What a layer reads before its own K and V, in a transformers cache's place."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, states: tuple[torch.Tensor, ...], layer: int):
        self._states, self._layer = states, layer

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note the layer's own K and V, (1, kv_heads, tokens, head_dim); return all."""
        self.keys, self.values = keys, values
        before = [tensor[self._layer][None] for tensor in self._states]
        return torch.cat((*before[::2], keys), 2), torch.cat((*before[1::2], values), 2)
