"""Where writes start that start from the text itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from ...modeling.kv import KV, decoder, rotary_tables
from ...modeling.shared_cache import SharedCache
from ...training.trainable import trainable_dtype
from .writing import Form, Tensors


def text_starts(
    model: PreTrainedModel,
    prefix: KV,
    ids: torch.Tensor,
    counted: torch.Tensor,
    tokens: int,
    form: Form,
    applied: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensors:
    """A start for each text: its tokens at the ends of ``tokens`` parts of like length.

    Of the form ``kv`` a start is these tokens' K and V, which have seen all that stands before them. Of the form
    ``embeddings`` it is their input embeddings. A text with fewer tokens than the memory gives some of them again.

    Args:
        prefix: rotated K and V that stand before the text, of one sequence for all.
        ids: (batch, n) int64, padded on the right.
        counted: (batch, n) bool: the tokens that are no padding.
        tokens: of a memory.
        applied: makes the context in which the model reads the text.

    Returns:
        Memories in the form that ``write`` takes, in float32 or better.
    """
    dtype = trainable_dtype(model.dtype)
    parts = torch.arange(1, tokens + 1, device=ids.device)
    # (batch, tokens): rounded up, so that the last one is the text's last.
    ends = ((parts * counted.sum(1, keepdim=True) + tokens - 1) // tokens - 1).clamp(min=0)
    if form == "embeddings":
        return {"embeddings": model.get_input_embeddings()(ids.gather(1, ends)).to(dtype)}
    cache, (first, last) = SharedCache(prefix), (prefix.end, prefix.end + ids.shape[1])
    with applied():
        decoder(model)(ids, position_ids=torch.arange(first, last, device=ids.device)[None], past_key_values=cache)
    tables = rotary_tables(model, first, ids.shape[1], dtype)
    own = [[states.own.to(dtype) for states in layer.split()] for layer in cache.layers]
    keys, values = (torch.stack(layers, 1) for layers in zip(*own, strict=True))
    places = ends[:, None, None, :, None].expand(*keys.shape[:1], *keys.shape[1:3], -1, keys.shape[-1])
    return {"keys": lk.undo_rotary(keys, *tables).gather(3, places), "values": values.gather(3, places)}
