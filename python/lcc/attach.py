"""Put memories in front of a model: into a transformers cache that plain ``generate`` reads, or into paged tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Cache, PreTrainedModel, StaticCache

import lcc_kernels as lk

from .encode import read_text
from .errors import InputError, MismatchError
from .kv import KV, check_architecture, check_one_rope, rotary_tables
from .memory import Memory

Caches = torch.Tensor | Sequence[torch.Tensor]


@torch.no_grad()
def attach(
    model: PreTrainedModel, memory: Memory | Sequence[Memory], start: int = 0, cache: StaticCache | None = None
) -> Cache:
    """Return a cache that holds a prefix and the buffer tokens behind it, keys rotated to ``start``, ``start`` + 1, ….

    Without ``cache`` it is a fresh one that serves one sequence or any batch or beams. ``generate`` wants placeholder
    ids for the cached tokens in front of the query, and for a ``start`` other than 0 position ids too: ``lcc.prompt``
    makes them. A cache grows with what is generated; attach again for the next query.

    Args:
        memory: one, or several that stand in a row in the order given, behind one prefix. Each was trained alone:
            benchmarks/LOG.md says what reading them together costs.
        start: position of the first token. The answers are the same wherever it stands, but for longrope models, whose
            rope is another one from ``original_max_position_embeddings`` on.
        cache: an empty, allocated ``StaticCache`` to write to, in every row of its batch.

    Raises:
        InputError: the model carries an adapter, is training with checkpointing, or has attention that is not
            supported; positions beyond its window; a cache that is not allocated, not empty or too small; a memory that
            holds NaN.
        MismatchError: a memory's layers, heads, widths, rope or prefix are not the model's, or the memories do not go
            together.
    """
    memories = _checked(model, memory, start)
    tokens = cached_tokens(memories)
    slots = torch.arange(tokens, device=model.device)
    if cache is None:
        layers, heads, _, width = memories[0].kv.keys.shape
        keys, values = torch.empty(2, layers, 1, heads, tokens, width, dtype=model.dtype, device=model.device)
        _write(model, memories, start, keys, values, slots)
        return KV(keys[:, 0], values[:, 0]).cache().follow(model)
    _check_static(model, cache, memories[0], tokens)
    _write(
        model, memories, start, [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers], slots
    )
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
) -> int:
    """Write what ``attach`` would hold into the blocks of a paged cache, as token 0, 1, … of one sequence.

    Args:
        key_cache, value_cache: a tensor a layer, viewed as (blocks, kv_heads, block_size, head_dim), whatever the
            strides: of vLLM's (blocks, block_size, kv_heads, head_dim) give ``layer.transpose(1, 2)``.
        block_table: the sequence's blocks in order, (max_blocks,) integers, each named once; they may be shared by any
            number of sequences that only read them.

    Returns:
        How many tokens were written: where the sequence goes on.

    Raises:
        InputError, MismatchError: as ``attach`` does, and for blocks that are too few, out of range or named twice.
        ValueError: caches that do not fit the memory; see ``lk.attach_kv``.
    """
    memories = _checked(model, memory, start)
    tokens = cached_tokens(memories)
    if not len(key_cache) or key_cache[0].ndim != 4:
        raise InputError("key_cache has no layer of (blocks, kv_heads, block_size, head_dim): give one tensor a layer")
    blocks, _, block_size, _ = key_cache[0].shape
    _check_blocks(block_table, math.ceil(tokens / block_size), blocks)
    positions = torch.arange(tokens, device=block_table.device)
    slots = lk.slot_mapping(block_table, positions, block_size).to(model.device)
    _write(model, memories, start, key_cache, value_cache, slots, paged=True)
    return tokens


def cached_tokens(memory: Memory | Sequence[Memory]) -> int:
    """How many tokens ``attach`` puts into a cache: one prefix, and every memory's buffer tokens."""
    memories = stack_of(memory)
    return len(memories[0].prefix_ids) + sum(each.buffer_tokens for each in memories)


def stack_of(memory: Memory | Sequence[Memory]) -> tuple[Memory, ...]:
    """One memory or several as a tuple.

    Raises:
        InputError: there is none.
        MismatchError: they were compiled for different models or behind different prefixes.
    """
    memories = (memory,) if isinstance(memory, Memory) else tuple(memory)
    if not memories:
        raise InputError("there is no memory to attach: give one, or a list of them")
    for number, other in enumerate(memories[1:], 2):
        if other.prefix_ids != memories[0].prefix_ids:
            raise MismatchError(
                f"memory {number} stands behind another prefix than memory 1: compile both with the same chat "
                "template and keep_prefix, and on the same date if the template writes the date"
            )
        if other.fingerprint != memories[0].fingerprint:
            raise MismatchError(f"memory {number} was compiled for another model or tokenizer than memory 1")
    return memories


@dataclass(frozen=True)
class _Part:
    """Consecutive tokens of the cache to be, with the tables that turn their keys, (tokens, rotary_dim)."""

    kv: KV
    cos: torch.Tensor
    sin: torch.Tensor
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None


def _parts(model: PreTrainedModel, memories: Sequence[Memory], start: int) -> Iterator[_Part]:
    dtype = torch.promote_types(model.dtype, torch.float32)
    prefix_ids = memories[0].prefix_ids
    if prefix_ids:
        # The model itself reads the prefix where it stands: its keys are turned already.
        one = torch.ones(len(prefix_ids), 2, dtype=dtype, device=model.device)
        yield _Part(read_text(model, prefix_ids, start=start), one, torch.zeros_like(one))
        start += len(prefix_ids)
    for memory in memories:
        here = {name: tensor.to(model.device) for name, tensor in memory.tensors().items()}
        tables = rotary_tables(model, start, memory.buffer_tokens, dtype)
        yield _Part(KV(here.pop("keys"), here.pop("values")), *tables, **here)
        start += memory.buffer_tokens


def _write(
    model: PreTrainedModel,
    memories: Sequence[Memory],
    start: int,
    key_cache: Caches,
    value_cache: Caches,
    slots: torch.Tensor,
    paged: bool = False,
) -> None:
    """Write prefix and memories to ``slots``, (tokens,), of every layer at once."""
    done = 0
    for part in _parts(model, memories, start):
        where = slots[done : done + len(part.kv)]
        lk.attach_kv(
            part.kv.keys,
            part.kv.values,
            key_cache,
            value_cache,
            where,
            part.cos,
            part.sin,
            part.key_scale,
            part.value_scale,
            paged=paged,
        )
        done += len(part.kv)


def _checked(model: PreTrainedModel, memory: Memory | Sequence[Memory], start: int) -> tuple[Memory, ...]:
    """The memories, if ``model`` can read them from ``start`` on."""
    check_architecture(model)
    if any(isinstance(module, BaseTunerLayer) and not module.disable_adapters for module in model.modules()):
        raise InputError("the model carries an active adapter: unload it, a memory is read by the plain model")
    if any(module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise InputError("the model is training with checkpointing, which drops the cache: call model.eval()")
    memories = stack_of(memory)
    for each in memories:
        each.check()
        _check_shapes(model, each)
    _check_positions(model, start, start + cached_tokens(memories))
    return memories


def _check_shapes(model: PreTrainedModel, memory: Memory) -> None:
    config = model.config
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers, memory_heads, _, memory_width = memory.kv.keys.shape
    for name, have, want in (
        ("layers", layers, config.num_hidden_layers),
        ("kv_heads", memory_heads, heads),
        ("head_dim", memory_width, width),
        ("rope", memory.rope, config.rope_parameters),
    ):
        if have != want:
            raise MismatchError(f"the memory's {name} is {have} but the model's is {want}: not compiled for this model")
    rows, largest = model.get_input_embeddings().weight.shape[0], max(memory.prefix_ids, default=0)
    if largest >= rows:
        raise MismatchError(f"the memory's prefix has token {largest} but the model embeds {rows} tokens")


def _check_positions(model: PreTrainedModel, start: int, end: int) -> None:
    """Refuse positions that the model does not have, or turns with two ropes."""
    window = getattr(model.config, "max_position_embeddings", None)
    if start < 0 or (window is not None and end >= window):
        raise InputError(
            f"the memory would stand at positions {start} to {end - 1}, with room for a query behind it; the model's "
            f"window has {window}: start elsewhere, or take a model with a longer window"
        )
    check_one_rope(model, start, end)


def _check_blocks(block_table: torch.Tensor, needed: int, blocks: int) -> None:
    """Refuse a table of which a part could be written before the rest turns out to be wrong."""
    if block_table.ndim != 1 or len(block_table) < needed:
        raise InputError(f"the memory takes {needed} blocks; the block table is {tuple(block_table.shape)}")
    used = block_table[:needed].tolist()
    if len(set(used)) < needed or min(used) < 0 or max(used) >= blocks:
        raise InputError(f"the block table's first {needed} must be different blocks of 0 to {blocks - 1}; got {used}")


def _check_static(model: PreTrainedModel, cache: StaticCache, memory: Memory, tokens: int) -> None:
    if not isinstance(cache, StaticCache):
        raise InputError(f"cache is a {type(cache).__name__}; give a StaticCache, or none for a new dynamic one")
    if not all(layer.is_initialized for layer in cache.layers):
        raise InputError(
            "the cache is not allocated: call cache.early_initialization(batch, kv_heads, head_dim, dtype, device)"
        )
    held = int(cache.get_seq_length())
    if held:
        raise InputError(f"the cache holds {held} tokens already: call cache.reset() first, or take a new one")
    layers, heads, _, width = memory.kv.keys.shape
    found = {(len(cache.layers), layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers}
    if found != {(layers, heads, width)}:
        raise MismatchError(
            f"the cache's (layers, kv_heads, head_dim) are {sorted(found)} but the memory's {(layers, heads, width)}"
        )
    shortest = min(layer.keys.shape[2] for layer in cache.layers)
    if shortest <= tokens:
        raise InputError(f"the cache has room for {shortest} tokens; the memory takes {tokens}, and a query needs some")
    if cache.layers[0].keys.device != model.device:
        raise InputError(f"the cache is on {cache.layers[0].keys.device} but the model on {model.device}")
