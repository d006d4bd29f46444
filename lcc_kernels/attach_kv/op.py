"""The public op: check the arguments, run a backend behind ``torch.library``, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..dispatch import select
from . import backends  # noqa: F401  registers them
from .attachment import SCHEMA, Attachment
from .checks import check, check_memory, check_values


def attach_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor | Sequence[torch.Tensor],
    value_cache: torch.Tensor | Sequence[torch.Tensor],
    slots: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    key_scale: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    backend: str = "auto",
    *,
    interleaved: bool = False,
    paged: bool = False,
    validate: bool = True,
) -> None:
    """Dequantise a memory, rotate its keys (RoFormer, Eq. 34) and write both into preallocated caches, in place.

    Rotation happens in float32 (float64 if the memory or the cache is), then values are rounded to the cache's dtype
    once. Rows of the caches other than ``slots`` are left alone. There is no gradient.

    Args:
        keys: (layers, kv_heads, K, head_dim), not rotated: floating point, int8 or float8_e4m3fn; any strides.
        values: like keys.
        key_cache: (layers, batch, kv_heads, max_len, head_dim), or a layer's (batch, kv_heads, max_len, head_dim) each,
            all of one shape and one set of strides, floating point. The memory is written to every sequence of the
            batch. With ``paged`` a layer's is (blocks, kv_heads, block_size, head_dim), by permuting where it is not.
        value_cache: like key_cache; its strides may differ.
        slots: (K,) int32 or int64, the target rows, no two alike; with ``paged`` block * block_size + offset, as
            ``slot_mapping`` gives them.
        cos, sin: (K, rotary_dim) at the target positions, as a transformers rotary module returns them (without its
            batch dimension), attention scaling included; channels from rotary_dim on are not rotated.
        key_scale: (layers, kv_heads, head_dim) positive factors of quantised keys, None for floating-point ones.
        value_scale: (layers, kv_heads, K) positive factors of quantised values, likewise.
        backend: ``auto``, or one of ``available_backends("attach_kv")``.
        interleaved: rotate channels (0, 1), (2, 3), ... instead of (0, rotary_dim / 2), ..., with tables that hold each
            value twice in a row, as Cohere's do.
        validate: read slots, tables and scales to refuse bad ones, for which a GPU has to finish first. False leaves
            that out, for CUDA graphs: triton and cuda then skip slots that are out of range, torch may write anywhere.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit, two caches begin at one address, a cache overlaps
            itself, or a gradient is wanted. Caches that overlap in part, or overlap the memory, are not noticed.
        BackendUnavailableError: ``backend`` cannot run here or on these tensors.
    """
    attachment = Attachment(
        keys, values, list(key_cache), list(value_cache), slots, cos, sin, key_scale, value_scale, interleaved, paged
    )
    check(attachment)
    torch.ops.lcc_kernels.attach_kv(*attachment.arguments, validate, backend)


@torch.library.custom_op(
    "lcc_kernels::attach_kv",
    mutates_args=("key_caches", "value_caches"),
    schema=f"({SCHEMA}, bool validate, str backend) -> ()",
)
def _attach(*arguments: object) -> None:
    *fields, validate, backend = arguments
    attachment = Attachment(*fields)  # type: ignore[arg-type]
    check_memory(attachment)
    if validate:
        check_values(attachment)
    select("attach_kv", str(backend), attachment)(attachment)


@_attach.register_fake
def _(*arguments: object) -> None:
    return None
