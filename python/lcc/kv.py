"""K and V of a few tokens in every layer: how they are read off a forward pass and put in front of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

import lcc_kernels as lk

from .errors import InputError


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

    def cache(self) -> SharedCache:
        """A transformers cache that holds these tokens."""
        return SharedCache(self)


class SharedLayer(DynamicLayer):
    """A dynamic layer that starts with one sequence and follows the batch of its first update."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        """Hold keys and values (kv_heads, tokens, head_dim)."""
        super().__init__()
        self.keys, self.values = keys[None], values[None]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new states, (batch, kv_heads, new tokens, head_dim)."""
        if self.keys.shape[0] == 1 and key_states.shape[0] > 1:
            self.keys = self.keys.expand(key_states.shape[0], -1, -1, -1)
            self.values = self.values.expand(key_states.shape[0], -1, -1, -1)
        return super().update(key_states, value_states, *args, **kwargs)


class SharedCache(DynamicCache):
    """A ``DynamicCache`` whose first tokens serve every sequence of whatever batch, or beams, come."""

    def __init__(self, kv: KV):
        super().__init__()
        self.layers = [SharedLayer(keys, values) for keys, values in zip(kv.keys, kv.values, strict=True)]

    def read(self) -> KV:
        """The K and V of a single sequence."""
        return KV.of(self)


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its lm_head."""
    return getattr(model, model.base_model_prefix)


def check_architecture(model: PreTrainedModel) -> None:
    """Refuse models whose attention this package does not reproduce.

    Raises:
        InputError: naming what the model does that is not supported.
    """
    name, config = type(model).__name__, model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None:
        kinds.add("sliding_attention")
    if kinds != {"full_attention"}:
        others = ", ".join(sorted(kinds - {"full_attention"}))
        raise InputError(f"{name} uses {others}: only full attention is supported")
    if not hasattr(decoder(model), "rotary_emb"):
        raise InputError(f"{name} has no rotary position embedding: Llama, Qwen and Mistral families are supported")
    for option in ("attn_logit_softcapping", "final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, option, None) not in (None, 1.0):
            raise InputError(f"{name} sets {option}, which is not supported")


@torch.no_grad()
def rotary_tables(
    model: PreTrainedModel, start: int, tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's own cos and sin at the positions from ``start`` on, (tokens, rotary_dim)."""
    positions = torch.arange(start, start + tokens, device=model.device)
    cos, sin = decoder(model).rotary_emb(torch.empty(0, dtype=dtype, device=model.device), positions[None])
    return cos[0], sin[0]
