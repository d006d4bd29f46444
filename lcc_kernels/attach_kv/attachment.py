"""The one object that says what is written where, from the public op down to the kernels."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch

SCHEMA = (
    "Tensor keys, Tensor values, Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor slots, Tensor cos, "
    "Tensor sin, Tensor? key_scale, Tensor? value_scale, bool interleaved, bool paged, int? key_group"
)


@dataclass(frozen=True)
class Attachment:
    """The arguments of ``attach_kv`` with a cache a layer, in the order of ``SCHEMA``.

    A cache is (blocks, kv_heads, block_size, head_dim). If ``paged``, slot s is row s % block_size of block
    s // block_size. If not, the blocks are the sequences of a batch: slot s is row s of every one of them.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_caches: list[torch.Tensor]
    value_caches: list[torch.Tensor]
    slots: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    key_scale: torch.Tensor | None
    value_scale: torch.Tensor | None
    interleaved: bool
    paged: bool
    key_group: int | None = None  # neighbouring tokens whose keys share a scale; None: all of them

    @property
    def arguments(self) -> tuple:
        """The fields in order: ``Attachment(*attachment.arguments)`` equals it."""
        return tuple(getattr(self, name) for name in _FIELDS)

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Every tensor that is read."""
        given = self.keys, self.values, self.slots, self.cos, self.sin, self.key_scale, self.value_scale
        return tuple(x for x in given if x is not None)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Every tensor, caches included."""
        return *self.inputs, *self.key_caches, *self.value_caches

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where each layer's key cache begins, then each layer's value cache; not for tensors that are only traced."""
        return tuple([cache.data_ptr() for cache in (*self.key_caches, *self.value_caches)])

    @property
    def packed(self) -> bool:
        """Whether a byte of the memory holds two neighbouring channels, as ``pack_int4`` puts them."""
        return self.keys.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Layers, kv_heads, tokens and channels of the memory."""
        layers, kv_heads, tokens, last = self.keys.shape
        return layers, kv_heads, tokens, 2 * last if self.packed else last

    @property
    def scales(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(layers, kv_heads, key groups, head_dim) for keys, (layers, kv_heads, K, groups of channels) for values."""
        if self.key_scale is None or self.value_scale is None:
            return None
        keys, values = self.key_scale, self.value_scale
        return keys if keys.ndim == 4 else keys.unsqueeze(2), values if values.ndim == 4 else values.unsqueeze(3)

    @property
    def key_run(self) -> int:
        """Neighbouring tokens whose keys share a scale; the last run may be shorter."""
        return self.key_group or self.shape[2]

    @property
    def value_run(self) -> int:
        """Neighbouring channels of a value that share a scale."""
        return self.shape[3] // (1 if self.scales is None else self.scales[1].shape[3])

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The scales in ``wide``, spread over what shares them: they multiply (layers, kv_heads, K, head_dim)."""
        if self.scales is None:
            return None
        keys, values = (x.to(self.wide) for x in self.scales)
        if keys.shape[2] > 1:
            keys = keys.repeat_interleave(self.key_run, 2)[:, :, : self.shape[2]]
        return keys, values.repeat_interleave(self.value_run, 3) if values.shape[3] > 1 else values

    @property
    def block_size(self) -> int:
        """Rows of a block."""
        return self.key_caches[0].shape[2]

    @property
    def capacity(self) -> int:
        """Slots of a cache."""
        return self.block_size * (self.key_caches[0].shape[0] if self.paged else 1)

    @property
    def copies(self) -> int:
        """How many rows of a cache each token is written to."""
        return 1 if self.paged else self.key_caches[0].shape[0]

    @property
    def wide(self) -> torch.dtype:
        """The dtype to compute in: float64 where the memory or the cache has it, float32 otherwise."""
        exact = torch.float64 in (self.keys.dtype, self.key_caches[0].dtype)
        return torch.float64 if exact else torch.float32


_FIELDS = tuple(field.name for field in fields(Attachment))
