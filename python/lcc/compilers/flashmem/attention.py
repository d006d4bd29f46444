"""Attention of latents that ask a text's frozen keys and values: gradients reach the latents, never the text.

Importing this file makes ``lcc_frozen_text`` a transformers attention implementation.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from transformers import AttentionInterface, PreTrainedModel

import lcc_kernels as lk

from ...modeling.attention import attending_with_state, refuse_variants
from ...modeling.kv import KV, decoder, rotary_tables_at

NAME = "lcc_frozen_text"


@dataclass
class FrozenText:
    """What latents see in one layer, and what the layer makes of them.

    Attributes:
        keys, values: of the text, (kv_heads, T, head_dim), keys rotated; constants.
        sees: which tokens of the text, and behind them which latents, each latent sees, (latents, T + latents) bool.
        own: keys, rotated, and values of the latents, (kv_heads, latents, head_dim) each, once the layer has run.
    """

    keys: torch.Tensor
    values: torch.Tensor
    sees: torch.Tensor
    own: tuple[torch.Tensor, ...] = ()


def frozen_text_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Attention over the module's ``frozen_text`` and the latents, as transformers calls it.

    The products over the text are apart from those over the latents, so that no backward forms a gradient of the text.

    Args:
        query: (1, heads, latents, head_dim), rotated.
        key, value: (1, kv_heads, latents, head_dim).
        attention_mask: None; ``FrozenText.sees`` says who sees whom.

    Returns:
        (1, latents, heads, head_dim) in the dtype of ``query``, and no weights. Scores are in float32 or better.

    Raises:
        ValueError: a mask or dropout, or an attention variant that is not computed here.
    """
    refuse_variants(module, NAME, options, "take another compiler")
    if attention_mask is not None or dropout:
        raise ValueError(f"{NAME} takes no mask and has no dropout: pass none and call model.eval()")
    text = cast(FrozenText, module.frozen_text)
    text.own = key[0], value[0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # (kv_heads, heads of a group, latents, head_dim): no copy of the keys for every head.
    asked = query[0].unflatten(0, (key.shape[1], -1)) * scale
    scores = torch.cat((asked @ text.keys[:, None].mT, asked @ key[0][:, None].mT), -1)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = wide.masked_fill(~text.sees, -torch.inf).softmax(-1).to(value.dtype)
    of_text, of_latents = weights.tensor_split([text.keys.shape[1]], -1)
    out = of_text @ text.values[:, None] + of_latents @ value[0][:, None]
    return out.flatten(0, 1).transpose(0, 1)[None], None


AttentionInterface.register(NAME, frozen_text_attention)


def asking(model: PreTrainedModel, texts: Iterable[FrozenText]) -> AbstractContextManager[None]:
    """Let the layers of ``model`` attend to ``texts`` inside the block."""
    return attending_with_state(model, NAME, "frozen_text", texts)


def latents_kv(
    model: PreTrainedModel, text: KV, inputs: torch.Tensor, positions: torch.Tensor, sees: torch.Tensor
) -> KV:
    """K and V of latents that run through the model as input embeddings with the text visible, keys unrotated.

    Differentiable in ``inputs``, and in whatever the caller puts into the model.

    Args:
        text: rotated.
        inputs: (latents, H).
        positions: of the latents, (latents,) int64.
        sees: see ``FrozenText``.
    """
    layers = [FrozenText(keys, values, sees) for keys, values in zip(text.keys, text.values, strict=True)]
    with asking(model, layers):
        decoder(model)(inputs_embeds=inputs[None], position_ids=positions[None], use_cache=False)
    keys, values = (torch.stack(states) for states in zip(*(layer.own for layer in layers), strict=True))
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    unrotated = lk.undo_rotary(wide, *rotary_tables_at(model, positions, wide.dtype))
    return KV(unrotated.to(keys.dtype), values)
