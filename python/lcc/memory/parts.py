"""What memories become in a cache: a prefix that a model has read, and buffer tokens behind it, keys rotated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

import lcc_kernels as lk

from ..modeling.kv import KV
from .attachable import check_range
from .memory import Memory
from .payload import KVPayload

Caches = torch.Tensor | Sequence[torch.Tensor]
# The cos and sin of so many positions from one on, in a dtype; each (tokens, rotary_dim).
Tables = Callable[[int, int, torch.dtype], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of the cache to be, with the tables that turn their keys, (tokens, rotary_dim)."""

    payload: KVPayload
    cos: torch.Tensor
    sin: torch.Tensor

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.cos)


def placed_parts(
    memories: Sequence[Memory],
    prefix: KV,
    tables: Tables,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Iterator[Part]:
    """The prefix and each memory behind it, where they stand.

    Args:
        prefix: of the memories, rotated; it may have no token.
        dtype: of the cache.

    Raises:
        InputError: a memory's numbers are beyond ``dtype``.
    """
    wide = torch.promote_types(dtype, torch.float32)
    if len(prefix):
        # Its keys are turned already.
        one = torch.ones(len(prefix), 2, dtype=wide, device=device)
        yield Part(KVPayload(prefix), one, torch.zeros_like(one))
    start = prefix.end
    for memory in memories:
        payload = KVPayload.of({name: tensor.to(device) for name, tensor in memory.tensors().items()})
        part = Part(payload, *tables(start, memory.buffer_tokens, wide))
        check_range(payload.numbers(wide), part.cos, part.sin, dtype)
        yield part
        start += memory.buffer_tokens


def write_parts(
    given: Sequence[Part], key_cache: Caches, value_cache: Caches, slots: torch.Tensor, paged: bool = False
) -> None:
    """Write parts to ``slots``, (tokens,), of every layer at once."""
    done = 0
    for part in given:
        payload, where = part.payload, slots[done : done + part.tokens]
        lk.attach_kv(
            payload.kv.keys,
            payload.kv.values,
            key_cache,
            value_cache,
            where,
            part.cos,
            part.sin,
            payload.key_scale,
            payload.value_scale,
            paged=paged,
            key_group=payload.codes.key_group if payload.codes else None,
        )
        done += part.tokens


def joined(given: Sequence[Part], start: int, dtype: torch.dtype) -> KV:
    """Parts one behind the other as rotated K and V in ``dtype``, the first token at position ``start``."""
    layers, heads, _, width = given[0].payload.dims
    device, tokens = given[0].cos.device, sum(part.tokens for part in given)
    keys, values = torch.empty(2, layers, 1, heads, tokens, width, dtype=dtype, device=device)
    write_parts(given, keys, values, torch.arange(tokens, device=device))
    return KV(keys[:, 0], values[:, 0], start)
