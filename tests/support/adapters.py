"""Adapters made without compiling, and memories of them."""

from __future__ import annotations

import torch

import lcc
from lcc.memory.payload import AdapterPayload
from lcc.modeling.adapter import Adapter, adaptable_layers
from lcc.text.chat_format import ChatFormat


def random_adapter(model, rank: int = 3, seed: int = 0, size: float = 0.3, cache_sharing: bool = True) -> Adapter:
    """A LoRA of random numbers on every linear layer of the decoder."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * size).to(model.dtype)

    layers = adaptable_layers(model)
    down = {name: matrix(rank, layer.in_features) for name, layer in layers.items()}
    up = {name: matrix(layer.out_features, rank) for name, layer in layers.items()}
    return Adapter(down, up, 2.0 * rank, cache_sharing)


def adapter_memory(model, tokenizer, adapter: Adapter | None = None) -> lcc.Memory:
    """A memory of ``adapter``, or of a random one."""
    return lcc.Memory(
        payload=AdapterPayload(adapter or random_adapter(model)),
        prefix_ids=tuple(ChatFormat.of(tokenizer).prefix_ids),
        ratio=16.0,
        source_tokens=100,
        source_sha256="",
        rope=dict(model.config.rope_parameters),
        fingerprint=lcc.fingerprint(model, tokenizer),
        settings={},
        compiler={"name": "adapter"},
    )
