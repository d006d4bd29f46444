"""The public op: check the arguments, run a backend behind ``torch.library``."""

from __future__ import annotations

from typing import Any

import torch

from .._ops import add_op_namespace_prefix, ops
from ..dispatch import select
from . import backends  # noqa: F401  registers them
from .batch import PrefixBatch

_NAME = add_op_namespace_prefix("shared_prefix_attention")


def shared_prefix_attention(
    q: torch.Tensor,
    shared_k: torch.Tensor,
    shared_v: torch.Tensor,
    own_k: torch.Tensor,
    own_v: torch.Tensor,
    own_lengths: torch.Tensor,
    scale: float | None = None,
    backend: str = "auto",
    *,
    own_starts: torch.Tensor | None = None,
    shared_lengths: torch.Tensor | None = None,
    shared_starts: torch.Tensor | None = None,
    shared_bias: torch.Tensor | None = None,
    return_lse: bool = False,
    return_entropy: bool = False,
    sinks: int = 0,
) -> Any:
    """Softmax attention of a batch over shared prefixes and each sequence's own keys and values, for inference.

    Sequence b owns the rows own_starts[b] ... own_starts[b] + own_lengths[b] - 1 of ``own_k`` and ``own_v``, and its
    queries are the last q_len of them: query i sees the whole prefix and the own rows up to own_lengths[b] - q_len + i.
    A query before the first own row (padding, or own length 0) sees the prefix alone; one that sees nothing gives
    zeros, log-sum-exp -inf and entropy 0. What lies outside an own length is never used and may be nan.

    All sequences have all S rows of ``shared_k`` and ``shared_v`` for their prefix, unless ``shared_lengths`` says
    otherwise: then these hold several prefixes, and that of sequence b is the rows shared_starts[b] ...
    shared_starts[b] + shared_lengths[b] - 1. Prefixes may lie anywhere and overlap, in one launch all the same.
    A prefix is read once for all its sequences where these stand side by side in the batch. A nan in the values of one
    prefix reaches its own sequences alone, but with ``triton`` it may reach neighbours in the batch too.

    Args:
        q: (batch, heads, q_len, head_dim), floating point.
        shared_k, shared_v: (kv_heads, S, head_dim), S may be 0; like q in dtype and device; kv_heads divides heads.
        own_k, own_v: (batch, kv_heads, max_len, head_dim), likewise, the queries' own rows already written.
        own_lengths: (batch,) int32 or int64 on the device of q.
        scale: factor of the scores, head_dim ** -0.5 if None.
        backend: ``auto``, or one of ``available_backends("shared_prefix_attention")``.
        own_starts: (batch,) like own_lengths, 0 if None: the rows before them are left padding.
        shared_lengths, shared_starts: (batch,) like own_lengths; S, and 0, if None.
        shared_bias: (kv_heads, S) float32, added to the scaled scores of all queries of a key head, as Attention
            Matching wants it (arXiv 2602.16284); a key with -inf is not seen, and must be finite.
        return_lse: also return the natural log-sum-exp of each query's scores, bias included.
        return_entropy: also return the entropy, in nats, of each query's attention over the keys other than its
            sequence's first ``sinks``, prefix first, renormalised (FlashMem, arXiv 2601.05505, equations 3 and 4,
            before the mean over heads).
        sinks: 0 or more.

    Returns:
        out like q, contiguous; with ``return_lse`` or ``return_entropy`` a tuple of out, lse and entropy, those that
        are asked for, both (batch, heads, q_len) float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices do not fit one another, an input requires a gradient, the backend is
            unknown, or, on the CPU, a sequence's rows lie outside 0 ... max_len or 0 ... S. A GPU does not wait for
            its lengths to be read: there, rows outside count as not owned.
        BackendUnavailableError: ``backend`` cannot run here or on these tensors.
    """
    inputs = {"q": q, "shared_k": shared_k, "shared_v": shared_v, "own_k": own_k, "own_v": own_v}
    _check_shapes(inputs)
    _check_alike(inputs)
    _check_rows("own_lengths", own_lengths, q)
    if own_starts is not None:
        _check_rows("own_starts", own_starts, q)
    if shared_lengths is not None:
        _check_rows("shared_lengths", shared_lengths, q)
    if shared_starts is not None:
        _check_rows("shared_starts", shared_starts, q)
        if shared_lengths is None:
            raise ValueError("shared_starts says where prefixes begin: give shared_lengths too")
    if shared_bias is not None:
        _check_bias(shared_bias, shared_k)
    if sinks < 0:
        raise ValueError(f"sinks is a number of keys: it must be 0 or more, got {sinks}")
    if sinks and not return_entropy:
        raise ValueError("sinks are keys that the entropy leaves out: pass return_entropy=True")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    outputs = ops.shared_prefix_attention(
        *inputs.values(), own_lengths, own_starts, shared_lengths, shared_starts, shared_bias,
        scale, return_lse, sinks if return_entropy else None, backend,
    )  # fmt: skip
    return tuple(outputs) if return_lse or return_entropy else outputs[0]


def _check_shapes(inputs: dict[str, torch.Tensor]) -> None:
    q, shared_k, shared_v, own_k, own_v = (tensor.shape for tensor in inputs.values())
    if (
        (len(q), len(shared_k), len(own_k)) != (4, 3, 4)
        or (shared_k != shared_v or own_k != own_v)
        or (own_k[0], own_k[1], own_k[3]) != (q[0], shared_k[0], q[3])
        or shared_k[2] != q[3]
    ):
        raise ValueError(
            "q must be (batch, heads, q_len, head_dim), shared_k and shared_v (kv_heads, S, head_dim), own_k and own_v "
            f"(batch, kv_heads, max_len, head_dim); got { ({name: tuple(x.shape) for name, x in inputs.items()}) }"
        )
    if shared_k[0] == 0 or q[1] % shared_k[0] != 0:
        raise ValueError(f"kv_heads must divide heads; got {q[1]} heads and {shared_k[0]} kv_heads")


def _check_alike(inputs: dict[str, torch.Tensor]) -> None:
    if len({(x.dtype, x.device) for x in inputs.values()}) > 1 or not inputs["q"].is_floating_point():
        given = {name: f"{x.dtype} on {x.device}" for name, x in inputs.items()}
        raise ValueError(f"q and all keys and values must share a floating dtype and a device; got {given}")
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs.values()):
        raise ValueError(
            "shared_prefix_attention has no gradient: call it under torch.no_grad(), or train with "
            "torch.nn.functional.scaled_dot_product_attention"
        )


def _check_rows(name: str, rows: torch.Tensor, q: torch.Tensor) -> None:
    """``rows`` are lengths or starts."""
    if rows.shape != q.shape[:1] or rows.dtype not in (torch.int32, torch.int64) or rows.device != q.device:
        raise ValueError(
            f"{name} must be ({q.shape[0]},), int32 or int64, on {q.device}; "
            f"got {tuple(rows.shape)}, {rows.dtype}, on {rows.device}"
        )


def _check_bias(bias: torch.Tensor, shared_k: torch.Tensor) -> None:
    if bias.shape != shared_k.shape[:2] or bias.dtype != torch.float32 or bias.device != shared_k.device:
        raise ValueError(
            f"shared_bias must be {tuple(shared_k.shape[:2])}, float32, on {shared_k.device}; "
            f"got {tuple(bias.shape)}, {bias.dtype}, on {bias.device}"
        )
    if torch.is_grad_enabled() and bias.requires_grad:
        raise ValueError("shared_prefix_attention has no gradient: detach shared_bias")


def _attention(*arguments: Any) -> list[torch.Tensor]:
    *fields, backend = arguments
    batch = PrefixBatch(*fields)
    if batch.own_lengths.device.type == "cpu":
        _check_range(batch)
    return select("shared_prefix_attention", backend, batch)(batch)


def _check_range(batch: PrefixBatch) -> None:
    max_len, shared_len = batch.own_k.shape[2], batch.shared_k.shape[1]
    for number, (start, length) in enumerate(batch.rows_in_use()):
        if start < 0 or length < 0 or start + length > max_len:
            raise ValueError(
                f"sequence {number} owns {length} rows from row {start} on, and own_k holds rows 0 ... {max_len - 1}: "
                "write the queries' keys and values first, then count them"
            )
    if batch.shared_lengths is None:
        return
    for number, (start, length) in enumerate(batch.prefixes()):
        if start < 0 or length < 0 or start + length > shared_len:
            raise ValueError(
                f"sequence {number} has {length} rows from row {start} on for its prefix, and shared_k holds rows "
                f"0 ... {shared_len - 1}: its prefix lies in shared_k as a whole"
            )


# torch.library.custom_op would do the same, in 7 microseconds more a call.
torch.library.define(
    _NAME,
    "(Tensor q, Tensor shared_k, Tensor shared_v, Tensor own_k, Tensor own_v, Tensor own_lengths, Tensor? own_starts, "
    "Tensor? shared_lengths, Tensor? shared_starts, Tensor? shared_bias, float scale, bool return_lse, int? sinks, "
    "str backend) -> Tensor[]",
)
torch.library.impl(_NAME, "default", _attention)


@torch.library.register_fake(_NAME)
def _(*arguments):  # type: ignore[no-untyped-def]
    return PrefixBatch(*arguments[:-1]).outputs()
