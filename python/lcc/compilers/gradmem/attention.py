"""Attention that can be differentiated any number of times: products, a mask and a softmax.

Importing this file makes ``lcc_plain`` a transformers attention implementation. The backward of fused attention has no
derivative, and gradients through unrolled writes need it.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from ...modeling.attention import refuse_variants

NAME = "lcc_plain"


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention with grouped queries, as transformers calls it.

    Args:
        query: (batch, heads, queries, head_dim), the last of the tokens that have keys.
        key, value: (batch, kv_heads, tokens, head_dim).
        attention_mask: None; it is causal.

    Returns:
        (batch, queries, heads, head_dim) in the dtype of ``query``, and no weights. Scores are in float32 or better.

    Raises:
        ValueError: a mask or dropout, or an attention variant that is not computed here.
    """
    refuse_variants(module, NAME, options, "take grad_mode='first', with the model's own attention")
    if attention_mask is not None or dropout:
        raise ValueError(f"{NAME} is causal and has no dropout: pass no mask and call model.eval()")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    wide = torch.promote_types(query.dtype, torch.float32)
    # (batch, kv_heads, heads of a group, queries, head_dim): no copy of the keys for every head.
    grouped = query.unflatten(1, (key.shape[1], -1))
    scores = (grouped * scale) @ key[:, :, None].mT
    queries, tokens = scores.shape[-2:]
    later = torch.ones(queries, tokens, dtype=torch.bool, device=query.device).triu(tokens - queries + 1)
    weights = scores.to(wide).masked_fill(later, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value[:, :, None]).flatten(1, 2).transpose(1, 2), None


AttentionInterface.register(NAME, plain_attention)
