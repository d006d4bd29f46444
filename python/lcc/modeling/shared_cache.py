"""A transformers cache whose first tokens, of one prefix or of several, are held once, whatever batch reads them."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from ..errors import InputError
from .kv import KV

# The attention implementation that takes a layer's K and V in two parts; ``shared_prefix.py`` registers it.
SHARED_PREFIX = "lcc_shared_prefix"


@dataclass(frozen=True)
class SplitStates:
    """Keys, or values, of one layer in two parts that no copy joins.

    Attributes:
        shared: (kv_heads, S, head_dim), of which each sequence sees what its attention mask says.
        own: (batch, kv_heads, own tokens, head_dim), what each sequence sees besides.
    """

    shared: torch.Tensor
    own: torch.Tensor

    def joined(self) -> torch.Tensor:
        """(batch, kv_heads, S + own tokens, head_dim): a copy of the shared part for every sequence."""
        return torch.cat((self.shared[None].expand(len(self.own), -1, -1, -1), self.own), 2)


class GrowingStates:
    """(batch, kv_heads, tokens, head_dim) at the front of a buffer that grows by half when it is full."""

    def __init__(self, states: torch.Tensor):
        self.buffer, self.tokens = states, states.shape[2]

    @property
    def states(self) -> torch.Tensor:
        """A view, (batch, kv_heads, tokens, head_dim)."""
        return self.buffer[:, :, : self.tokens]

    def append(self, new: torch.Tensor) -> None:
        """Append (batch, kv_heads, new tokens, head_dim); a single sequence so far becomes a batch."""
        start, self.tokens = self.tokens, self.tokens + new.shape[2]
        # Autograd may still want what a write in place would change.
        if torch.is_grad_enabled():
            old = self.buffer[:, :, :start].expand(len(new), -1, -1, -1)
            self.buffer = torch.cat((old, new), 2)
            return
        # What was made in inference mode is not written to outside of it.
        foreign = self.buffer.is_inference() and not torch.is_inference_mode_enabled()
        if self.tokens > self.buffer.shape[2] or len(new) != len(self.buffer) or foreign:
            old = self.buffer[:, :, :start]
            batch, heads, _, width = new.shape
            self.buffer = new.new_empty(batch, heads, max(self.tokens, start + start // 2), width)
            self.buffer[:, :, :start] = old
        self.buffer[:, :, start : self.tokens] = new

    def refilled(self, kept: torch.Tensor, tokens: int, entering: torch.Tensor, room: int) -> GrowingStates:
        """The last ``tokens`` tokens of the sequences ``kept``, and those of ``entering``, all ending together."""
        longest, first = max(tokens, entering.shape[2]), self.tokens - tokens
        _, heads, _, width = entering.shape
        buffer = entering.new_zeros(len(kept) + len(entering), heads, longest + room, width)
        if len(kept):
            buffer[: len(kept), :, longest - tokens : longest] = self.buffer[kept, :, first : self.tokens]
        buffer[len(kept) :, :, longest - entering.shape[2] : longest] = entering
        states = GrowingStates(buffer)
        states.tokens = longest
        return states


class SharedLayer(DynamicLayer):
    """A dynamic layer whose first tokens are held once, and each sequence's own tokens apart from them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        """Hold keys and values (kv_heads, tokens, head_dim)."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.shared = [keys, values]
        self.reset()
        self.config: weakref.ref | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a file keeps: no model is followed from there."""
        return vars(self) | {"config": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedLayer:
        """A copy follows the same model."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(vars(self), memo))
        return copied

    def split(self) -> tuple[SplitStates, SplitStates]:
        """Keys and values, shared and own apart; the own ones of batch 1 until the first update."""
        keys, values = (SplitStates(shared, own.states) for shared, own in zip(self.shared, self._own, strict=True))
        return keys, values

    @property
    def keys(self) -> torch.Tensor:
        """(batch, kv_heads, tokens, head_dim), joined at each call."""
        return self.split()[0].joined()

    @property
    def values(self) -> torch.Tensor:
        """(batch, kv_heads, tokens, head_dim), joined at each call."""
        return self.split()[1].joined()

    def tensors(self) -> list[torch.Tensor]:
        """All that the layer holds."""
        return [*self.shared, *(own.buffer for own in self._own)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[SplitStates, SplitStates]:
        """Append the new states, (batch, kv_heads, new tokens, head_dim).

        Returns:
            Keys and values: in two parts while the followed model attends with ``SHARED_PREFIX``, else joined.
        """
        for own, new in zip(self._own, (key_states, value_states), strict=True):
            own.append(new)
        config: Any = self.config() if self.config is not None else None
        if config is not None and config._attn_implementation == SHARED_PREFIX:
            return self.split()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Shared and own tokens."""
        return self.shared[0].shape[1] + self._own[0].tokens

    def reset(self) -> None:
        """Forget the own tokens."""
        self._own = [GrowingStates(states[None, :, :0]) for states in self.shared]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens, own ones first."""
        if tokens_to_remove > 0:
            raise ValueError("crop takes the number of tokens to remove as a negative integer")
        own = min(self._own[0].tokens, -tokens_to_remove)
        kept = self.shared[0].shape[1] + tokens_to_remove + own
        for states in self._own:
            states.tokens -= own
        self.shared = [states[:, : max(kept, 0)] for states in self.shared]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence ``repeats`` times."""
        self._map(lambda states: states.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences ``indices``, (kept,) int64."""
        self._map(lambda states: states[indices])

    def refill(self, kept: torch.Tensor, tokens: int, entering: SharedLayer, room: int) -> None:
        """See ``SharedCache.refill``."""
        self._own = [
            own.refilled(kept, tokens, new.states, room) for own, new in zip(self._own, entering._own, strict=True)
        ]

    def copy_rows(self, source: SharedLayer, rows: torch.Tensor, tokens: int) -> None:
        """See ``SharedCache.copy_rows``."""
        self._own = [GrowingStates(own.states[rows, :, own.tokens - tokens :]) for own in source._own]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let sequence i go on from sequence ``beam_idx[i]``, (batch,) int64."""
        self._map(lambda states: states.index_select(0, beam_idx.to(states.device)))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self._own[0].tokens:
            self._own = [GrowingStates(change(own.states)) for own in self._own]


class SharedCache(DynamicCache):
    """A ``DynamicCache`` whose first tokens are held once and serve every sequence of whatever batch, or beams, come.

    They are one prefix, or several that stand side by side: then a sequence's attention mask is True at the tokens of
    its own prefix and False at those of the others. While a model that it follows attends with ``lcc_shared_prefix``,
    they are never copied; any other attention gets ordinary tensors, one layer's copy at a time.
    """

    def __init__(self, *prefixes: KV):
        super().__init__()
        # Refuses unrotated keys.
        self._starts = [kv.end - len(kv) for kv in prefixes]
        shared = (_side_by_side([getattr(kv, name) for kv in prefixes]) for name in ("keys", "values"))
        self.layers = [SharedLayer(keys, values) for keys, values in zip(*shared, strict=True)]

    def follow(self, model: PreTrainedModel) -> SharedCache:
        """Give ``model`` what its attention implementation takes, whichever it has at the time; returns self."""
        for layer in self.layers:
            # Weak, so that a deep copy of the cache follows the same model.
            layer.config = weakref.ref(model.config)
        return self

    def kv(self) -> KV:
        """The K and V of a single sequence.

        Raises:
            ValueError: the cache holds several prefixes.
        """
        if len(self._starts) > 1:
            raise ValueError("the tokens of two prefixes are not one sequence: make a cache of one prefix")
        return KV.of(self, self._starts[0])

    def empty(self) -> SharedCache:
        """A cache of the same prefixes without own tokens."""
        other = copy.copy(self)
        other.layers = [SharedLayer(*layer.shared) for layer in self.layers]
        return other

    def copy_rows(self, source: SharedCache, rows: torch.Tensor, tokens: int) -> None:
        """Own copies of the last ``tokens`` own tokens of another cache's sequences ``rows``, (rows,) int64."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.copy_rows(other, rows, tokens)

    def take_rows(self, source: SharedCache) -> None:
        """Hold another cache's sequences without copying them."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer._own = other._own

    def refill(self, kept: torch.Tensor, tokens: int, entering: SharedCache, room: int = 0) -> None:
        """Go on with some of the sequences, and with those of ``entering``, which shares the same tokens.

        Own tokens end together; what stands before a sequence's own tokens is not theirs and undefined.

        Args:
            kept: (sequences,) int64.
            tokens: own tokens that the longest of the kept sequences has.
            room: tokens that can be appended before memory is asked for.
        """
        for layer, new in zip(self.layers, entering.layers, strict=True):
            layer.refill(kept, tokens, new, room)

    def activate_past_recording(self) -> None:
        """What transformers calls before assisted decoding, which this cache does not allow.

        Raises:
            InputError: always.
        """
        raise InputError(
            "assisted decoding (an assistant model, prompt lookup) reads the ids of the cached tokens, and a memory's "
            "have none: leave assistant_model, assistant_early_exit and prompt_lookup_num_tokens out"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the storages that the cache keeps alive, room to grow included."""
        held = (tensor.untyped_storage() for layer in self.layers for tensor in layer.tensors())
        return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


def _side_by_side(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """(layers, kv_heads, tokens, head_dim) each, joined over tokens; a single one is not copied."""
    return states[0] if len(states) == 1 else torch.cat(list(states), 2)
