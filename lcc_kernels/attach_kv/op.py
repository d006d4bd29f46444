"""The public op: check the arguments, run a backend behind ``torch.library``, in place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import filterfalse

import torch

from .._ops import NAMESPACE, add_op_namespace_prefix, ops
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
    key_group: int | None = None,
    validate: bool = True,
) -> None:
    """Dequantise a memory, rotate its keys (RoFormer, Eq. 34) and write both into preallocated caches, in place.

    Rotation happens in float32 (float64 if the memory or the cache is), then values are rounded to the cache's dtype
    once. Rows of the caches other than ``slots`` are left alone. There is no gradient.

    Args:
        keys: (layers, kv_heads, K, head_dim), not rotated: floating point, int8 or float8_e4m3fn, or uint8
            (layers, kv_heads, K, head_dim / 2) of ``pack_int4``; any strides.
        values: like keys.
        key_cache: (layers, batch, kv_heads, max_len, head_dim), or a layer's (batch, kv_heads, max_len, head_dim) each,
            all of one shape and one set of strides, floating point. The memory is written to every sequence of the
            batch. With ``paged`` a layer's is (blocks, kv_heads, block_size, head_dim), by permuting where it is not.
        value_cache: like key_cache; its strides may differ.
        slots: (K,) int32 or int64, the target rows, no two alike; with ``paged`` block * block_size + offset, as
            ``slot_mapping`` gives them.
        cos, sin: (K, rotary_dim) at the target positions, as a transformers rotary module returns them (without its
            batch dimension), attention scaling included; channels from rotary_dim on are not rotated. Both channels of
            a pair have one angle, so kernels read the entry of the first.
        key_scale: (layers, kv_heads, head_dim) positive factors of quantised keys, None for floating-point ones. With
            ``key_group`` (layers, kv_heads, ceil(K / key_group), head_dim).
        value_scale: (layers, kv_heads, K) positive factors of quantised values, likewise; or (layers, kv_heads, K,
            groups), one for each of as many equal parts of head_dim.
        backend: ``auto``, or one of ``available_backends("attach_kv")``.
        interleaved: rotate channels (0, 1), (2, 3), ... instead of (0, rotary_dim / 2), ..., with tables that hold each
            value twice in a row, as Cohere's do.
        key_group: neighbouring tokens whose keys share a scale, from the first token on; None: all of them.
        validate: read slots, tables and scales to refuse bad ones, for which a GPU has to finish first. False leaves
            that out, for CUDA graphs: triton and cuda then skip slots that are out of range, torch may write anywhere.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit, two caches begin at one address, a cache overlaps
            itself, or a gradient is wanted. Caches that overlap in part, or overlap the memory, are not noticed.
        BackendUnavailableError: ``backend`` cannot run here or on these tensors.
    """
    stacked = isinstance(key_cache, torch.Tensor) and isinstance(value_cache, torch.Tensor)
    caches, scales = (_layers(key_cache), _layers(value_cache)), (key_scale, value_scale)
    attachment = Attachment(keys, values, *caches, slots, cos, sin, *scales, interleaved, paged, key_group)
    check(attachment, stacked)
    _OP(*attachment.arguments, validate, backend)


def _layers(caches: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list(caches.unbind(0) if isinstance(caches, torch.Tensor) else caches)


def _attach(*arguments: object) -> None:
    *fields, validate, backend = arguments
    attachment = Attachment(*fields)  # type: ignore[arg-type]
    check_memory(attachment)
    if validate:
        check_values(attachment)
    select("attach_kv", str(backend), attachment)(attachment)
    written = *attachment.key_caches, *attachment.value_caches
    torch.autograd.graph.increment_version(filterfalse(torch.is_inference, written))


# Defined by hand: ``torch.library.custom_op`` looks at every tensor in Python and takes longer than all the rest.
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
_LIBRARY.define(f"attach_kv({SCHEMA}, bool validate, str backend) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
_LIBRARY.impl("attach_kv", _attach, "CompositeExplicitAutograd")
_OP = ops.attach_kv.default


@torch.library.register_fake(add_op_namespace_prefix("attach_kv"), lib=_LIBRARY)
def _(*arguments: object) -> None:
    return None
