"""The one object that says what is written where, from the public op down to the kernels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

SCHEMA = (
    "Tensor keys, Tensor values, Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor slots, Tensor cos, "
    "Tensor sin, Tensor? key_scale, Tensor? value_scale, bool interleaved, bool paged"
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

    @property
    def arguments(self) -> tuple:
        """The fields in order: ``Attachment(*attachment.arguments)`` equals it."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Every tensor, caches included."""
        single = self.keys, self.values, self.slots, self.cos, self.sin, self.key_scale, self.value_scale
        return *(x for x in single if x is not None), *self.key_caches, *self.value_caches

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

    def for_kernels(self) -> Attachment:
        """The same, as kernels expect it: channels side by side, int64 slots, float32 tables and scales, contiguous."""
        keys, values = (x if x.stride(3) == 1 else x.contiguous() for x in (self.keys, self.values))
        cos, sin = self.cos.float().contiguous(), self.sin.float().contiguous()
        key_scale, value_scale = (
            x if x is None else x.float().contiguous() for x in (self.key_scale, self.value_scale)
        )
        slots = self.slots.long().contiguous()
        tables = slots, cos, sin, key_scale, value_scale
        return Attachment(keys, values, self.key_caches, self.value_caches, *tables, self.interleaved, self.paged)
