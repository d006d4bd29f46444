"""K and V of a few tokens in every layer: how they are read off a forward pass and put in front of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel

import lcc_kernels as lk

from ..errors import InputError


@dataclass(frozen=True)
class KV:
    """Keys and values of consecutive tokens in every layer.

    Attributes:
        keys, values: (layers, kv_heads, tokens, head_dim).
        start: the position of the first token, to which the keys are rotated. None: the keys are unrotated.
    """

    keys: torch.Tensor
    values: torch.Tensor
    start: int | None = None

    @classmethod
    def of(cls, cache: Cache, start: int = 0) -> KV:
        """What a cache of one sequence holds, whose first token stands at position ``start``."""
        keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
        return cls(torch.cat(keys), torch.cat(values), start)

    @classmethod
    def in_a_row(cls, row: Iterable[KV]) -> KV:
        """The tokens of several, one behind the other; see ``after``."""
        return reduce(lambda front, kv: kv.after(front), row)

    def __len__(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def end(self) -> int:
        """The position behind the last token.

        Raises:
            ValueError: the keys are unrotated.
        """
        if self.start is None:
            raise ValueError("unrotated keys stand at no position: call rotated first")
        return self.start + len(self)

    def head(self, tokens: int) -> KV:
        """The first ``tokens`` tokens."""
        return replace(self, keys=self.keys[:, :, :tokens], values=self.values[:, :, :tokens])

    def tail(self, tokens: int) -> KV:
        """The last ``tokens`` tokens."""
        skipped = len(self) - tokens
        start = None if self.start is None else self.start + skipped
        return KV(self.keys[:, :, skipped:], self.values[:, :, skipped:], start)

    def select(self, places: Sequence[int]) -> KV:
        """The tokens at ``places``, one behind the other.

        Raises:
            ValueError: the keys are rotated: tokens that stood apart would stand at positions of their own.
        """
        if self.start is not None:
            raise ValueError("the keys are rotated: call unrotated first")
        return KV(self.keys[:, :, list(places)], self.values[:, :, list(places)])

    def after(self, other: KV) -> KV:
        """``other``'s tokens, then these.

        Raises:
            ValueError: these do not stand right behind ``other``.
        """
        if self.start != (None if other.start is None else other.end):
            raise ValueError(f"tokens from position {self.start} on do not go on from {other.start} + {len(other)}")
        keys, values = torch.cat((other.keys, self.keys), 2), torch.cat((other.values, self.values), 2)
        return KV(keys, values, other.start)

    def rotated(self, model: PreTrainedModel, start: int) -> KV:
        """Rotate unrotated keys to the positions from ``start`` on.

        Raises:
            ValueError: the keys are rotated already.
        """
        if self.start is not None:
            raise ValueError(f"the keys are rotated already, from position {self.start} on: call unrotated first")
        return KV(self._turned(model, start, lk.apply_rotary), self.values, start)

    def unrotated(self, model: PreTrainedModel) -> KV:
        """Undo the rotation of the keys.

        Raises:
            ValueError: the keys are unrotated already.
        """
        if self.start is None:
            raise ValueError("the keys are unrotated already")
        return KV(self._turned(model, self.start, lk.undo_rotary), self.values)

    def moved(self, model: PreTrainedModel, start: int) -> KV:
        """Rotated keys at the positions from ``start`` on instead."""
        return self.unrotated(model).rotated(model, start)

    def _turned(self, model: PreTrainedModel, start: int, turn: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The keys, turned in float32 at least: half precision would round at every move."""
        wide = self.keys.to(torch.promote_types(self.keys.dtype, torch.float32))
        tables = rotary_tables(model, start, len(self), wide.dtype)
        return turn(wide, *tables).to(self.keys.dtype)


def no_tokens(model: PreTrainedModel, start: int = 0) -> KV:
    """K and V of no token, in the model's dtype."""
    layers, heads, width = kv_shape(model.config)
    empty = torch.empty(layers, heads, 0, width, dtype=model.dtype, device=model.device)
    return KV(empty, empty, start)


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its lm_head."""
    return getattr(model, model.base_model_prefix)


def kv_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """(layers, kv_heads, head_dim) of a model's K and V."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width


def check_one_rope(model: PreTrainedModel, start: int, end: int) -> None:
    """Refuse the positions ``start`` to ``end`` - 1 if a longrope model turns some with one rope and some with another.

    Raises:
        InputError: naming the position where the rope changes.
    """
    rope = model.config.rope_parameters
    turn = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") == "longrope" and turn is not None and start < turn < end:
        raise InputError(
            f"tokens would stand at positions {start} to {end - 1}, and the model's rope is another one from {turn} "
            f"on: keep text, question and answer together on one side of it"
        )


def rotary_tables(
    model: PreTrainedModel, start: int, tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own cos and sin at the positions from ``start`` on, (tokens, rotary_dim)."""
    return rotary_tables_at(model, torch.arange(start, start + tokens, device=model.device), dtype)


@torch.no_grad()
def rotary_tables_at(
    model: PreTrainedModel, positions: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own cos and sin at ``positions``, (tokens,) int64; each (tokens, rotary_dim) on their device."""
    cos, sin = decoder(model).rotary_emb(torch.empty(0, dtype=dtype, device=positions.device), positions[None])
    return cos[0], sin[0]
