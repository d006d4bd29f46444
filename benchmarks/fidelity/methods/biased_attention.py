"""Attention with a bias of each of the first keys: importing this file makes it a transformers implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from lcc.modeling.attention import attending_with_state

IMPLEMENTATION = "biased_attention"


@dataclass
class Biased:
    """What a layer adds to the scores of the first keys, (kv_heads, tokens), and the queries it attended with last."""

    bias: torch.Tensor
    query: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def attending_with(model: PreTrainedModel, bias: torch.Tensor) -> Iterator[list[Biased]]:
    """Let ``model`` add ``bias``, (layers, kv_heads, tokens), to the scores of its first keys inside the block."""
    layers = [Biased(of_layer) for of_layer in bias]
    with attending_with_state(model, IMPLEMENTATION, "biased", layers):
        yield layers


def biased_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, inside ``attending_with``; nothing is dropped.

    Args:
        query: (batch, heads, q_len, head_dim), rotated.
        key, value: (batch, kv_heads, kv_len, head_dim).
        attention_mask: (batch, 1, q_len, kv_len), added to the scores.

    Returns:
        (batch, q_len, heads, head_dim), and no weights.
    """
    module.biased.query = query
    bias = module.biased.bias
    added = pad(bias, (0, key.shape[2] - bias.shape[1])).repeat_interleave(query.shape[1] // len(bias), 0)
    mask = attention_mask + added[None, :, None].to(query.dtype)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, biased_attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
