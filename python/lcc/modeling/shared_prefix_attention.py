"""Sequences that share their first tokens, attended without a copy of these for each sequence.

Importing this file makes ``lcc_shared_prefix`` a transformers attention implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

import lcc_kernels as lk

from .attention import refuse_variants
from .shared_cache import SHARED_PREFIX, SplitStates

REMEDY = 'use model.set_attn_implementation("sdpa")'


class Rows(NamedTuple):
    """Own and shared K and V rows that each sequence sees, as ``lk.shared_prefix_attention`` takes them.

    All are (batch,) int32. No starts are zeros; no shared lengths, all shared rows.
    """

    lengths: torch.Tensor
    starts: torch.Tensor | None = None
    shared_lengths: torch.Tensor | None = None
    shared_starts: torch.Tensor | None = None


class VisibleRows:
    """Which K and V rows each sequence sees: the mask, before it is known how many of its rows are own ones.

    A forward makes one, and all of its layers read the same answer off it.
    """

    def __init__(self, batch: int, mask: torch.Tensor | None, device: torch.device):
        """Take a (batch, all rows) bool mask with False for what is not seen, or None for none of it."""
        self._batch, self._mask, self._device = batch, mask, device
        self._known: dict[int, Rows] = {}

    def of(self, own: int) -> Rows:
        """The rows that each sequence sees, of which the last ``own`` are own ones.

        Raises:
            ValueError: what a sequence sees is not some consecutive shared rows and its last own rows.
        """
        if own not in self._known:
            self._known[own] = self._read(own)
        return self._known[own]

    def _read(self, own: int) -> Rows:
        if self._mask is None:
            return Rows(torch.full((self._batch,), own, dtype=torch.int32, device=self._device))
        shared = self._mask.shape[1] - own
        lengths = self._mask[:, shared:].sum(1, dtype=torch.int32)
        starts = own - lengths
        rows = torch.arange(-shared, own, dtype=torch.int32, device=self._device)
        seen_own = rows >= starts[:, None]
        # As a rule all shared rows are seen.
        if torch.equal(seen_own | (rows < 0), self._mask):
            return Rows(lengths, starts)
        prefix_lengths = self._mask[:, :shared].sum(1, dtype=torch.int32)
        prefix_starts = (self._mask[:, :shared].cumsum(1) == 0).sum(1, dtype=torch.int32)
        first = (prefix_starts - shared)[:, None]
        seen_shared = (rows >= first) & (rows < first + prefix_lengths[:, None])
        if torch.equal(seen_own | seen_shared, self._mask):
            return Rows(lengths, starts, prefix_lengths, prefix_starts)
        raise ValueError(
            f"{SHARED_PREFIX} lets a sequence see shared tokens that follow one another, and its own tokens behind "
            f"left padding: lcc.prompt makes such inputs; for others {REMEDY}"
        )


def visible_rows_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **options: object,
) -> VisibleRows:
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
    return VisibleRows(batch_size, attention_mask, torch.device(device))


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: SplitStates | torch.Tensor,
    value: SplitStates | torch.Tensor,
    attention_mask: VisibleRows,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """``lcc_kernels.shared_prefix_attention`` as transformers calls it.

    Args:
        query: (batch, heads, q_len, head_dim), rotated.
        key, value: as ``SharedCache`` hands them out, or (batch, kv_heads, tokens, head_dim) with nothing shared.
        attention_mask: made by ``visible_rows_mask``.

    Returns:
        (batch, q_len, heads, head_dim), and no weights.

    Raises:
        ValueError: a mask of the caller's own, dropout, or an attention variant that the op does not compute.
    """
    refuse_variants(module, SHARED_PREFIX, options, REMEDY)
    if not isinstance(attention_mask, VisibleRows) or dropout:
        raise ValueError(
            f"{SHARED_PREFIX} takes 2-D attention masks and has no dropout: pass no 4-D mask and call model.eval()"
        )
    dtype = _dtype(query)
    shared_k, own_k = _parts(key, dtype)
    shared_v, own_v = _parts(value, dtype)
    rows = attention_mask.of(own_k.shape[2])
    out = lk.shared_prefix_attention(
        query.to(dtype), shared_k, shared_v, own_k, own_v, rows.lengths, scale=scaling,
        own_starts=rows.starts, shared_lengths=rows.shared_lengths, shared_starts=rows.shared_starts,
    )  # fmt: skip
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
AttentionMaskInterface.register(SHARED_PREFIX, visible_rows_mask)
