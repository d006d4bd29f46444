"""Floating point operations of a decoder's passes, counted from their shapes: two for each multiply-add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from lcc.modeling.kv import decoder, kv_shape


def pass_flops(model: PreTrainedModel, past: Sequence[int], new: int) -> int:
    """A pass over rows of ``new`` tokens each, padding included, and the logits of each row's last token.

    Counted are matrix products: those of the layers' linear modules for each token, queries with keys and weights with
    values for each visible pair (a token sees its row's past and, of the new tokens, itself and those before it), and
    the head. Norms, rotations and activations are not.

    Args:
        past: how many tokens each row sees before its new ones.
    """
    config, rows = model.config, len(past)
    layers, _, head_dim = kv_shape(config)
    linears = (module for module in decoder(model).layers.modules() if isinstance(module, torch.nn.Linear))
    weights = sum(linear.weight.numel() for linear in linears)
    pairs = sum(before * new + new * (new + 1) // 2 for before in past)
    attention = layers * 2 * pairs * config.num_attention_heads * head_dim
    head = rows * model.get_output_embeddings().weight.numel()
    return 2 * (rows * new * weights + attention + head)


def answer_flops(model: PreTrainedModel, past: int, tokens: int) -> int:
    """The passes of one row that write ``tokens`` tokens after the first, behind ``past`` tokens."""
    return sum(pass_flops(model, [past + written], 1) for written in range(tokens))
