"""The model reads tokens, and their K and V are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from .kv import KV, decoder
from .model_copy import without_dropout
from .shared_cache import SharedCache
from .window import check_window


def read_prefix(model: PreTrainedModel, ids: Sequence[int], past: KV | None = None) -> KV:
    """K and V (rotated) of ``ids`` from position 0 on, and right behind them those of ``past``.

    Args:
        past: with unrotated keys, of any float dtype, on any device.

    Raises:
        InputError: the tokens go beyond the model's window.
    """
    prefix = prefill(model, ids)
    if past is None:
        return prefix
    given = KV(past.keys.to(prefix.keys), past.values.to(prefix.values))
    return given.rotated(model, prefix.end).after(prefix)


def prefill(model: PreTrainedModel, ids: Sequence[int], past: KV | None = None, start: int = 0) -> KV:
    """K and V (rotated) of ``ids`` read by the model as it is, after ``past``; ``past`` is included.

    ``start`` is the position of the first token of all. No dropout acts, also if the model is in train mode.

    Raises:
        InputError: the tokens go beyond the model's window.
    """
    model = without_dropout(model)
    cache = SharedCache(past) if past is not None else None
    first = start if past is None else past.end - len(past)
    start = start if past is None else past.end
    check_window(
        model, start + len(ids), "the tokens to read", "give fewer, or take a model with a longer window", start
    )
    tokens = torch.tensor([list(ids)], device=model.device)
    positions = torch.arange(start, start + len(ids), device=model.device)
    options = {"past_key_values": cache, "use_cache": True, "return_dict": True}
    output = decoder(model)(input_ids=tokens, position_ids=positions[None], **options)
    return KV.of(output.past_key_values, first)
