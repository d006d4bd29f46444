"""Put memories in front of a model: into a transformers cache that plain ``generate`` reads, or into paged tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from transformers import Cache, PreTrainedModel, StaticCache

import lcc_kernels as lk

from ..errors import InputError, MismatchError
from ..modeling.fingerprint import differing
from ..modeling.kv import no_tokens, rotary_tables
from ..modeling.prefill import prefill
from ..modeling.shared_cache import SharedCache
from ..modeling.wrappers import plain_model
from ..utils.values import check
from .attachable import check_blocks, check_memory, check_model, check_positions, check_static
from .memory import Memory, require_memory
from .parts import Part, joined, placed_parts, write_parts


@torch.no_grad()
def attach(
    model: PreTrainedModel,
    memory: Memory | Sequence[Memory],
    start: int = 0,
    cache: StaticCache | None = None,
    verify: bool = True,
) -> Cache:
    """Return a cache that holds a prefix and the buffer tokens behind it, keys rotated to ``start``, ``start`` + 1, ….

    Without ``cache`` it is a fresh one that serves one sequence or any batch or beams. ``generate`` wants placeholder
    ids for the cached tokens in front of the query, and for a ``start`` other than 0 position ids too: ``lcc.prompt``
    makes them. A cache grows with what is generated; attach again for the next query.

    Args:
        memory: one, or several that stand in a row in the order given, behind one prefix. Those that were not trained
            among ``distractors`` lose answers in company: see benchmarks/log.
        start: position of the first token. The answers are the same wherever it stands, but for longrope models, whose
            rope is another one from ``original_max_position_embeddings`` on.
        cache: an empty, allocated ``StaticCache`` of the model's dtype to write to, in every row of its batch.
        verify: compare the model's fingerprint with the memory's, which reads all of its weights once. Without, a
            memory of other weights is taken if its shapes fit.

    Raises:
        InputError: the model carries an adapter that is active, is training with checkpointing, or has attention that
            is not supported; positions beyond its window; a cache that does not fit; a memory that holds NaN, or
            numbers beyond the model's dtype.
        MismatchError: the memory was compiled for another model, or the memories do not go together.
    """
    model = plain_model(model)
    memories = _checked(model, memory, start, verify)
    tokens = cached_tokens(memories)
    if cache is None:
        return SharedCache(joined(_parts(model, memories, start), start, model.dtype)).follow(model)
    check_static(model, cache, memories[0], tokens)
    slots = torch.arange(tokens, device=model.device)
    keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
    write_parts(_parts(model, memories, start), keys, values, slots)
    for layer in cache.layers:
        layer.cumulative_length.fill_(tokens)
    return cache


@torch.no_grad()
def attach_paged(
    model: PreTrainedModel,
    memory: Memory | Sequence[Memory],
    key_cache: Sequence[torch.Tensor],
    value_cache: Sequence[torch.Tensor],
    block_table: torch.Tensor,
    start: int = 0,
    verify: bool = True,
) -> int:
    """Write what ``attach`` would hold into the blocks of a paged cache, as token 0, 1, … of one sequence.

    Args:
        key_cache, value_cache: a tensor a layer, viewed as (blocks, kv_heads, block_size, head_dim), whatever the
            strides. vLLM's layers on a GPU are (blocks, kv_heads, block_size, 2 head_dim) from 0.26 on: give
            ``kv[..., :head_dim]`` and ``kv[..., head_dim:]``. Before 0.26 keys and values are (blocks, block_size,
            kv_heads, head_dim) each: give ``layer.transpose(1, 2)``. On a CPU vLLM stores keys in an order of its
            backend's, which alone can write them.
        block_table: the sequence's blocks in order, (max_blocks,) integers, each named once; they may be shared by any
            number of sequences that only read them.
        verify: as for ``attach``.

    Returns:
        How many tokens were written: where the sequence goes on.

    Raises:
        InputError, MismatchError: as ``attach`` does, and for blocks that are too few, out of range or named twice.
        ValueError: caches that do not fit the memory; see ``lk.attach_kv``.
    """
    model = plain_model(model)
    memories = _checked(model, memory, start, verify)
    tokens = cached_tokens(memories)
    if not len(key_cache) or key_cache[0].ndim != 4:
        raise InputError("key_cache has no layer of (blocks, kv_heads, block_size, head_dim): give one tensor a layer")
    blocks, _, block_size, _ = key_cache[0].shape
    check_blocks(block_table, math.ceil(tokens / block_size), blocks)
    positions = torch.arange(tokens, device=block_table.device)
    slots = lk.slot_mapping(block_table, positions, block_size).to(model.device)
    write_parts(_parts(model, memories, start), key_cache, value_cache, slots, paged=True)
    return tokens


def cached_tokens(memory: Memory | Sequence[Memory]) -> int:
    """How many tokens ``attach`` puts into a cache: one prefix, and every memory's buffer tokens."""
    memories = stack_of(memory)
    return len(memories[0].prefix_ids) + sum(len(each.kv) for each in memories)


def stack_of(memory: Memory | Sequence[Memory]) -> tuple[Memory, ...]:
    """One memory or several as a tuple.

    Raises:
        InputError: there is none.
        MismatchError: they were compiled for different models or behind different prefixes.
    """
    memories = tuple(memory) if isinstance(memory, Iterable) else (memory,)
    for each in memories:
        require_memory(each)
    if not memories:
        raise InputError("there is no memory to attach: give one, or a list of them")
    for number, other in enumerate(memories[1:], 2):
        if other.prefix_ids != memories[0].prefix_ids:
            raise MismatchError(
                f"memory {number} stands behind another prefix than memory 1: compile both with the same chat "
                "template and keep_prefix, and on the same date if the template writes the date"
            )
        fields = differing(other.fingerprint, memories[0].fingerprint)
        if fields:
            raise MismatchError(
                f"memory {number} was compiled for another model or tokenizer than memory 1 ({', '.join(fields)}): "
                "compile both with the same ones"
            )
    return memories


def _parts(model: PreTrainedModel, memories: Sequence[Memory], start: int) -> list[Part]:
    """Prefix and memories; all are known to fit before the first is written."""
    prefix = prefill(model, memories[0].prefix_ids, start=start) if memories[0].prefix_ids else no_tokens(model, start)
    return list(placed_parts(memories, prefix, partial(rotary_tables, model), model.dtype, model.device))


def _checked(model: PreTrainedModel, memory: Memory | Sequence[Memory], start: int, verify: bool) -> tuple[Memory, ...]:
    """The memories, if ``model`` can read them from ``start`` on and, to ``verify``, is the one they belong to."""
    check_model(model)
    check("start", start, int)
    memories = stack_of(memory)
    for each in memories:
        check_memory(model, each)
    check_positions(model, start, start + cached_tokens(memories))
    if verify:
        memories[0].verify(model)
    return memories
