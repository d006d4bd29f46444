"""K and V of a few tokens in every layer: how they are read off a forward pass and put in front of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel

import lcc_kernels as lk

from ..errors import InputError


@dataclass(frozen=True)
class KV:
    """Keys and values (layers, kv_heads, tokens, head_dim); whether the keys are rotated is the owner's to say."""

    keys: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, cache: Cache) -> KV:
        """What a cache of one sequence holds."""
        return cls(
            torch.cat([layer.keys for layer in cache.layers]), torch.cat([layer.values for layer in cache.layers])
        )

    def __len__(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def head(self, tokens: int) -> KV:
        """The first ``tokens`` tokens."""
        return KV(self.keys[:, :, :tokens], self.values[:, :, :tokens])

    def tail(self, tokens: int) -> KV:
        """The last ``tokens`` tokens."""
        return KV(self.keys[:, :, len(self) - tokens :], self.values[:, :, len(self) - tokens :])

    def after(self, other: KV) -> KV:
        """``other``'s tokens, then these."""
        return KV(torch.cat((other.keys, self.keys), 2), torch.cat((other.values, self.values), 2))

    def rotated(self, model: PreTrainedModel, start: int) -> KV:
        """Rotate unrotated keys to the positions from ``start`` on."""
        return self._turned(model, start, lk.apply_rotary)

    def unrotated(self, model: PreTrainedModel, start: int) -> KV:
        """Undo the rotation of keys that stand at the positions from ``start`` on."""
        return self._turned(model, start, lk.undo_rotary)

    def _turned(self, model: PreTrainedModel, start: int, turn: Callable[..., torch.Tensor]) -> KV:
        """Turn the keys in float32 at least: half precision would round at every move."""
        wide = self.keys.to(torch.promote_types(self.keys.dtype, torch.float32))
        tables = rotary_tables(model, start, len(self), wide.dtype)
        return KV(turn(wide, *tables).to(self.keys.dtype), self.values)


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


@torch.no_grad()
def rotary_tables(
    model: PreTrainedModel, start: int, tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own cos and sin at the positions from ``start`` on, (tokens, rotary_dim)."""
    positions = torch.arange(start, start + tokens, device=model.device)
    cos, sin = decoder(model).rotary_emb(torch.empty(0, dtype=dtype, device=model.device), positions[None])
    return cos[0], sin[0]
