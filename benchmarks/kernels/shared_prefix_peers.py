"""Attention over a shared prefix as a user has it today: replicated in front of every sequence, or in a cascade."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch.nn.functional import scaled_dot_product_attention

import lcc_kernels as lk
from benchmarks.kernels.shared_prefix_cases import DecodeCase, Tensors

PAGE = 16
WORKSPACE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Ready:
    """``call`` runs one step over keys and values of ``kv_bytes``, which were laid out before."""

    call: Callable[[], torch.Tensor]
    kv_bytes: int


@dataclass(frozen=True)
class Peer:
    """``prepare`` lays out a case's keys and values; ``refuses`` says why it cannot, or None."""

    prepare: Callable[[DecodeCase, Tensors], Ready]
    refuses: Callable[[DecodeCase, str], str | None] = lambda case, device: None


def _kernel(backend: str) -> Peer:
    def prepare(case: DecodeCase, tensors: Tensors) -> Ready:
        held = sum(x.nbytes for x in tensors.arguments[1:5])
        return Ready(partial(lk.shared_prefix_attention, *tensors.arguments, backend=backend), held)

    return Peer(prepare, lambda case, device: lk.available_backends("shared_prefix_attention")[backend])


def visible(case: DecodeCase, lengths: torch.Tensor) -> torch.Tensor:
    """(batch, 1, q_len, shared + own) bool over replicated keys."""
    places = torch.arange(case.shared + case.own, device=lengths.device)
    step = torch.arange(case.q_len, device=lengths.device) - case.q_len
    return (places <= (case.shared + lengths[:, None] + step)[..., None])[:, None]


def _sdpa(case: DecodeCase, tensors: Tensors) -> Ready:
    keys, values = tensors.replicated()
    mask = visible(case, tensors.own_lengths)
    attend = partial(scaled_dot_product_attention, attn_mask=mask, enable_gqa=True)
    return Ready(partial(attend, tensors.q, keys, values), keys.nbytes + values.nbytes)


def _sdpa_appending(case: DecodeCase, tensors: Tensors) -> Ready:
    """A step that first appends its keys and values, as transformers' DynamicCache does: by a copy of the cache."""
    keys, values = tensors.replicated()
    append_keys, append_values = _append(keys, case.q_len), _append(values, case.q_len)
    mask = visible(case, tensors.own_lengths)

    def attend() -> torch.Tensor:
        return scaled_dot_product_attention(tensors.q, append_keys(), append_values(), attn_mask=mask, enable_gqa=True)

    return Ready(attend, keys.nbytes + values.nbytes)


def _ours_appending(case: DecodeCase, tensors: Tensors) -> Ready:
    """The same step with our attention: only own rows are copied."""
    q, shared_k, shared_v, own_k, own_v, lengths = tensors.arguments
    append_keys, append_values = _append(own_k, case.q_len), _append(own_v, case.q_len)

    def attend() -> torch.Tensor:
        return lk.shared_prefix_attention(q, shared_k, shared_v, append_keys(), append_values(), lengths)

    return Ready(attend, sum(x.nbytes for x in (shared_k, shared_v, own_k, own_v)))


def _append(cache: torch.Tensor, count: int) -> Callable[[], torch.Tensor]:
    """Put the last ``count`` rows behind those before them, each time it is called."""
    before, new = (x.contiguous() for x in (cache[:, :, :-count], cache[:, :, -count:]))
    return lambda: torch.cat([before, new], 2)


def _flex(case: DecodeCase, tensors: Tensors) -> Ready:
    keys, values = tensors.replicated()
    attend = _flex_attend(case, str(keys.device))
    return Ready(partial(attend, tensors.q, keys, values), keys.nbytes + values.nbytes)


@lru_cache(maxsize=1)
def _flex_attend(case: DecodeCase, device: str) -> Callable:
    """Compiled once a case: past its limit of compilations FlexAttention falls back to eager, and does not say so."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    stops = torch.tensor(case.lengths, device=device) + case.shared - case.q_len

    def mask(batch: torch.Tensor, head: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return k <= stops[batch] + q

    total = case.shared + case.own
    block_mask = create_block_mask(mask, case.batch, None, case.q_len, total, device=device)
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return partial(compiled, block_mask=block_mask, enable_gqa=True)


def _flash_attn(case: DecodeCase, tensors: Tensors) -> Ready:
    from flash_attn import flash_attn_with_kvcache

    q, keys, values = (x.transpose(1, 2).contiguous() for x in (tensors.q, *tensors.replicated()))
    lengths = (case.shared + tensors.own_lengths).int()

    def attend() -> torch.Tensor:
        return flash_attn_with_kvcache(q, keys, values, cache_seqlens=lengths, causal=True).transpose(1, 2)

    return Ready(attend, keys.nbytes + values.nbytes)


def _flashinfer(case: DecodeCase, tensors: Tensors) -> Ready:
    """Two levels over one page table, as docs.flashinfer.ai/api/cascade.html has them; written from it, not yet run."""
    from flashinfer import MultiLevelCascadeAttentionWrapper

    device, batch, q_len = tensors.q.device, case.batch, case.q_len
    count = partial(torch.tensor, dtype=torch.int32, device=device)
    prefix, own = _pages(tensors.shared_k[None], tensors.shared_v[None]), _pages(tensors.own_k, tensors.own_v)
    used = [-(-length // PAGE) for length in case.lengths]
    pages = own.shape[0] // batch
    places = [len(prefix) + sequence * pages + page for sequence in range(batch) for page in range(used[sequence])]
    starts = torch.tensor([0, *used]).cumsum(0).tolist()
    wrapper = MultiLevelCascadeAttentionWrapper(
        2, torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device), "NHD"
    )
    wrapper.plan(
        [count([0, batch * q_len]), count(range(0, (batch + 1) * q_len, q_len))],
        [count([0, len(prefix)]), count(starts)],
        [count(range(len(prefix))), count(places)],
        [count([(case.shared - 1) % PAGE + 1]), count([(length - 1) % PAGE + 1 for length in case.lengths])],
        case.heads,
        case.kv_heads,
        case.head_dim,
        PAGE,
        causal=True,
        q_data_type=case.dtype,
    )
    cache = torch.cat([prefix, own])
    q = tensors.q.transpose(1, 2).reshape(batch * q_len, case.heads, case.head_dim)
    shape = batch, q_len, case.heads, case.head_dim
    return Ready(lambda: wrapper.run(q, cache).view(shape).transpose(1, 2), cache.nbytes)


def _pages(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(batch, kv_heads, n, head_dim) to (batch * pages, 2, PAGE, kv_heads, head_dim), the last ones padded."""
    both = torch.stack([keys, values], 1).transpose(2, 3)  # (batch, 2, n, kv_heads, head_dim)
    whole = torch.nn.functional.pad(both, (0, 0, 0, 0, 0, -both.shape[2] % PAGE))
    return whole.unflatten(2, (-1, PAGE)).transpose(1, 2).flatten(0, 1).contiguous()


def _on_gpus(package: str | None = None) -> Callable[[DecodeCase, str], str | None]:
    def refuses(case: DecodeCase, device: str) -> str | None:
        if device != "cuda":
            return "it is measured on GPUs"
        return f"{package} is not installed" if package and find_spec(package) is None else None

    return refuses


PEERS = {
    **{name: _kernel(name) for name in lk.available_backends("shared_prefix_attention") if name != "reference"},
    "sdpa_replicated": Peer(_sdpa),
    "auto_appending": Peer(_ours_appending),
    "sdpa_replicated_appending": Peer(_sdpa_appending),
    "flex_replicated": Peer(_flex, _on_gpus()),
    "flash_attn_replicated": Peer(_flash_attn, _on_gpus("flash_attn")),
    "flashinfer_cascade": Peer(_flashinfer, _on_gpus("flashinfer")),
}
