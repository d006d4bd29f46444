"""Sequences that share their first tokens, attended without a copy of these for each sequence.

Importing this file makes ``lcc_shared_prefix`` a transformers attention implementation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

import lcc_kernels as lk

from .attention import refuse_variants
from .shared_cache import SHARED_PREFIX, SplitStates

REMEDY = 'use model.set_attn_implementation("sdpa")'


class OwnRows:
    """Which of its own K and V rows each sequence sees: the mask, before it is known how many rows are own ones.

    A forward makes one, and all of its layers read the same answer off it.
    """

    def __init__(self, batch: int, mask: torch.Tensor | None, device: torch.device):
        """Take a (batch, all rows) bool mask with False for padding, or None for no padding."""
        self._batch, self._mask, self._device = batch, mask, device
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def of(self, own: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """How many of the last ``own`` rows count, and the first that does (None: row 0); both (batch,) int32.

        Raises:
            ValueError: padding anywhere but between the shared rows and a sequence's first token.
        """
        if own not in self._known:
            self._known[own] = self._read(own)
        return self._known[own]

    def _read(self, own: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._mask is None:
            return torch.full((self._batch,), own, dtype=torch.int32, device=self._device), None
        shared = self._mask.shape[1] - own
        lengths = self._mask[:, shared:].sum(1, dtype=torch.int32)
        starts = own - lengths
        rows = torch.arange(-shared, own, dtype=torch.int32, device=self._device)
        seen = (rows >= starts[:, None]) | (rows < 0)
        if not torch.equal(seen, self._mask):
            raise ValueError(
                f"{SHARED_PREFIX} takes padding between the shared tokens and each query alone: lcc.prompt makes such "
                f"inputs; for others {REMEDY}"
            )
        return lengths, starts


def own_rows_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **options: object,
) -> OwnRows:
    """What transformers calls to make the mask of a forward: the padding alone, the op is causal by itself.

    Args:
        attention_mask: (batch, kv_length) bool.

    Raises:
        ValueError: a mask other than causal with padding, or a cache that is larger than what it holds.
    """
    if mask_function is not causal_mask_function:
        raise ValueError(f"{SHARED_PREFIX} is causal and takes no other mask: {REMEDY}")
    if isinstance(q_offset, torch.Tensor) or kv_length != q_offset + q_length:
        raise ValueError(f"{SHARED_PREFIX} reads caches that grow, such as lcc.attach returns: for others {REMEDY}")
    if attention_mask is not None and attention_mask.shape[1] != kv_length:
        raise ValueError(
            f"the attention mask covers {attention_mask.shape[1]} tokens, cache and input have {kv_length}"
        )
    return OwnRows(batch_size, attention_mask, torch.device(device))


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: SplitStates | torch.Tensor,
    value: SplitStates | torch.Tensor,
    attention_mask: OwnRows,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """``lcc_kernels.shared_prefix_attention`` as transformers calls it.

    Args:
        query: (batch, heads, q_len, head_dim), rotated.
        key, value: as ``SharedCache`` hands them out, or (batch, kv_heads, tokens, head_dim) with nothing shared.
        attention_mask: made by ``own_rows_mask``.

    Returns:
        (batch, q_len, heads, head_dim), and no weights.

    Raises:
        ValueError: a mask of the caller's own, dropout, or an attention variant that the op does not compute.
    """
    refuse_variants(module, SHARED_PREFIX, options, REMEDY)
    if not isinstance(attention_mask, OwnRows) or dropout:
        raise ValueError(
            f"{SHARED_PREFIX} takes 2-D attention masks and has no dropout: pass no 4-D mask and call model.eval()"
        )
    dtype = _dtype(query)
    shared_k, own_k = _parts(key, dtype)
    shared_v, own_v = _parts(value, dtype)
    lengths, starts = attention_mask.of(own_k.shape[2])
    out = lk.shared_prefix_attention(
        query.to(dtype), shared_k, shared_v, own_k, own_v, lengths, scale=scaling, own_starts=starts
    )
    return out.transpose(1, 2).contiguous(), None


def _dtype(query: torch.Tensor) -> torch.dtype:
    """What to attend in: under autocast, rotated queries and keys come in another dtype than values."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _parts(states: SplitStates | torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Shared and own part; of an ordinary tensor nothing is shared."""
    if isinstance(states, torch.Tensor):
        states = SplitStates(states[0, :, :0], states)
    return states.shared.to(dtype), states.own.to(dtype)


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, own_rows_mask)
