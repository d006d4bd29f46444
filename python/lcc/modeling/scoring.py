"""Completions scored under a model: its states where they are predicted, and how far such states are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from .kv import KV, decoder
from .module_patching import mlp_on
from .shared_cache import SharedCache


@dataclass(frozen=True)
class Completion:
    """A query and its response, as token ids.

    Attributes:
        query_ids: from the end of the text to the start of the response.
        response_ids: the response and its end token. The model is scored on each of them.
    """

    query_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The tokens that predict the response: the query, and the response without its end token."""
        return self.query_ids + self.response_ids[:-1]


def completion_states(
    model: PreTrainedModel,
    visible: KV,
    completions: Sequence[Completion],
    acting_on: Callable[[torch.Tensor | None], AbstractContextManager] = lambda _: nullcontext(),
) -> torch.Tensor:
    """Last hidden states where the responses are predicted, after the rotated tokens of ``visible``.

    Args:
        acting_on: lets an adapter act on those tokens alone; see ``AdaptedModel.acting_on``.

    Returns:
        (response tokens of all completions, H), completion by completion. Each sees ``visible`` and itself alone.
    """
    length = max(len(completion.input_ids) for completion in completions)
    ids = [[*completion.input_ids, *[0] * (length - len(completion.input_ids))] for completion in completions]
    # Padding stands on the right of every token that is read: causality alone keeps it out of sight.
    positions = torch.arange(visible.end, visible.end + length, device=model.device)
    predicting = torch.zeros(len(completions), length, dtype=torch.bool)
    for row, completion in enumerate(completions):
        predicting[row, len(completion.query_ids) - 1 : len(completion.input_ids)] = True
    read = predicting.flatten().nonzero()[:, 0].to(model.device)
    with acting_on(read), mlp_on(decoder(model).layers[-1], read, partial(acting_on, None)):
        hidden = decoder(model)(
            input_ids=torch.tensor(ids, device=model.device),
            position_ids=positions[None],
            past_key_values=SharedCache(visible),
        ).last_hidden_state
    return hidden.flatten(0, 1)[read]


def state_divergence(
    model: PreTrainedModel,
    hidden: torch.Tensor,
    teacher: torch.Tensor,
    weights: torch.Tensor,
    loss: str,
    logit_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Weighted sum of the divergence from ``teacher`` to ``hidden``, both last hidden states, (rows, H).

    ``logit_dtype`` is that of ``lk.linear_kl``.
    """
    row_weight = weights.to(_head(model).weight.dtype)
    return _divergence(model, hidden, teacher, row_weight=row_weight, loss=loss, logit_dtype=logit_dtype)


def token_divergence(model: PreTrainedModel, hidden: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || hidden) of each row, (rows,), in nats; both are last hidden states, (rows, H)."""
    return _divergence(model, hidden, teacher, reduction="none")


def _divergence(
    model: PreTrainedModel, hidden: torch.Tensor, teacher: torch.Tensor, reduction: str = "sum", **options: Any
) -> torch.Tensor:
    head = _head(model)
    hidden = hidden.to(head.weight.dtype)
    bias = getattr(head, "bias", None)
    return lk.linear_kl(hidden, teacher.to(hidden), head.weight, bias, reduction=reduction, **options)


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()
