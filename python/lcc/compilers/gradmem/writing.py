"""Writing: a memory takes in a text by plain gradient steps on the text's next-token loss (GradMem, equations 4 and 5).

A memory being written is a dict of tensors, of one of two forms:

* input embeddings (the paper): ``embeddings`` (batch, m, H);
* K and V in every layer (its appendix J): ``keys`` and ``values`` (batch, layers, kv_heads, m, head_dim), keys before
  rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

import lcc_kernels as lk

from ...modeling.kv import KV, decoder, kv_shape, rotary_tables
from ...modeling.shared_cache import SharedCache

Tensors = dict[str, torch.Tensor]
Form = Literal["embeddings", "kv"]
GradMode = Literal["none", "first", "second"]
# Of the tensors of a memory.
NAMES: dict[Form, tuple[str, ...]] = {"embeddings": ("embeddings",), "kv": ("keys", "values")}
# Logits that are held at once; those of a longer text are computed again in the backward.
LOGITS = 1 << 24


@dataclass(frozen=True)
class Written:
    """A memory after its writes.

    Attributes:
        memory: see the file's docstring.
        losses: of each text before each write, (writes, batch), in nats a token.
    """

    memory: Tensors
    losses: torch.Tensor


def write(
    model: PreTrainedModel,
    prefix: KV,
    start: Tensors,
    ids: torch.Tensor,
    counted: torch.Tensor,
    rates: Iterable[float | torch.Tensor],
    grad_mode: GradMode = "none",
    used: Callable[[Tensors], Tensors] = dict,
    applied: Callable[[], AbstractContextManager] = nullcontext,
) -> Written:
    """Write each text of a batch into a memory of its own: M <- M - rate * dL/dM, once for each of ``rates``.

    L is a text's mean loss, so a rate means the same for texts of any length, and in a batch of any size.

    Args:
        prefix: rotated K and V that stand before the memory, of one sequence for all.
        start: the memories before the first write.
        ids: (batch, n) int64, padded on the right.
        counted: (batch, n) bool: the tokens that are no padding. A text without any leaves its memory as it is.
        rates: step sizes.
        grad_mode: how much of the writes can be differentiated. ``none``: nothing. ``first``: the gradient of a write
            counts as a constant, so the Jacobian of the memory in its start is the identity. ``second``: all of it; the
            model must then attend with ``lcc_plain``.
        used: what the model reads of a memory, such as a learned projection of it.
        applied: makes the context in which the model reads the text.
    """
    memory, losses = start, [torch.zeros(0, len(ids), device=ids.device)]
    second = grad_mode == "second"
    for rate in rates:
        held = {name: _leaf(tensor, second) for name, tensor in memory.items()}
        with torch.enable_grad(), applied():
            loss = token_losses(model, prefix, used(held), ids, counted)
            slopes = torch.autograd.grad(
                loss.sum(), list(held.values()), retain_graph=grad_mode != "none", create_graph=second
            )
        moved = held if second else memory
        memory = {name: tensor - rate * slope for (name, tensor), slope in zip(moved.items(), slopes, strict=True)}
        if grad_mode == "none":
            memory, loss = {name: tensor.detach() for name, tensor in memory.items()}, loss.detach()
        losses.append(loss[None])
    return Written(memory, torch.cat(losses))


def token_losses(
    model: PreTrainedModel, prefix: KV, memory: Tensors, ids: torch.Tensor, counted: torch.Tensor
) -> torch.Tensor:
    """The mean loss of the counted tokens of each row behind prefix and memory, (batch,), in nats.

    The last memory token predicts the first token of a row. A memory of K and V has no outputs: there the first token
    is read and not predicted.

    Args:
        ids: (batch, n) int64, padded on the right: causality keeps padding out of sight.
        counted: (batch, n) bool.
    """
    hidden = _predicting(model, prefix, memory, ids)
    labels, counted = (tensor[:, -hidden.shape[1] :] for tensor in (ids, counted))
    losses = _cross_entropies(model, hidden, labels)
    return losses.where(counted, 0).sum(1) / counted.sum(1).clamp(min=1)


def predictions(model: PreTrainedModel, prefix: KV, memory: Tensors, ids: torch.Tensor) -> torch.Tensor:
    """The logits that ``token_losses`` scores, (batch, n, vocabulary); for a memory of K and V (batch, n - 1, ...)."""
    return model.get_output_embeddings()(_predicting(model, prefix, memory, ids))


def memory_kv(model: PreTrainedModel, prefix: KV, memory: Tensors) -> KV:
    """What one memory is to a reader: K and V of its tokens, keys before rotation; (1, ...) tensors in ``memory``."""
    if "embeddings" not in memory:
        return KV(memory["keys"][0].to(model.dtype), memory["values"][0].to(model.dtype))
    cache = SharedCache(prefix)
    inputs = memory["embeddings"].to(model.dtype)
    positions = torch.arange(prefix.end, prefix.end + inputs.shape[1], device=inputs.device)
    decoder(model)(inputs_embeds=inputs, position_ids=positions[None], past_key_values=cache)
    return cache.kv().tail(inputs.shape[1]).unrotated(model)


def no_prefix(model: PreTrainedModel) -> KV:
    """The K and V of no tokens."""
    layers, heads, width = kv_shape(model.config)
    empty = torch.zeros(layers, heads, 0, width, device=model.device, dtype=model.dtype)
    return KV(empty, empty, 0)


def _leaf(tensor: torch.Tensor, second: bool) -> torch.Tensor:
    """The tensor as one to differentiate by: with its history only where that is wanted."""
    return tensor if second and tensor.requires_grad else tensor.detach().requires_grad_()


def _predicting(model: PreTrainedModel, prefix: KV, memory: Tensors, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states of the tokens before those that are predicted, (batch, predicted tokens, H)."""
    cache, start = SharedCache(prefix), prefix.end
    embeddings = model.get_input_embeddings()(ids[:, :-1])
    predicted = embeddings.shape[1]
    if "embeddings" in memory:
        embeddings = torch.cat((memory["embeddings"].to(embeddings.dtype), embeddings), 1)
        predicted += 1
    else:
        keys, values = memory["keys"], memory["values"]
        keys = lk.apply_rotary(keys, *rotary_tables(model, start, keys.shape[3], keys.dtype))
        for layer, key, value in zip(cache.layers, keys.unbind(1), values.unbind(1), strict=True):
            layer.update(key.to(embeddings.dtype), value.to(embeddings.dtype))
        start += keys.shape[3]
    positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
    output = decoder(model)(inputs_embeds=embeddings, position_ids=positions[None], past_key_values=cache)
    return output.last_hidden_state[:, -predicted:]


def _cross_entropies(model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each label, in float32 or better; all logits of a long text at once would not fit."""
    head = model.get_output_embeddings()

    def of_rows(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = head(states)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return cross_entropy(logits.to(wide), wanted, reduction="none")

    rows = max(1, LOGITS // head.weight.shape[0])
    flat, wanted = hidden.flatten(0, 1), labels.flatten()
    if len(flat) <= rows:
        return of_rows(flat, wanted).view_as(labels)
    parts = zip(flat.split(rows), wanted.split(rows), strict=True)
    return torch.cat([checkpoint(of_rows, *part, use_reentrant=False) for part in parts]).view_as(labels)
