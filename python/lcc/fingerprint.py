"""What a memory belongs to: a model's config and weights, and a tokenizer with its chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .files import tensor_bytes

# What DeepSpeed's ZeRO-3 hangs on the parameters that it shards.
ZERO3 = "ds_tensor"
# Tensors up to this many elements are hashed whole; of larger ones, SAMPLES evenly spaced elements and exact sums.
WHOLE_ELEMENTS = 1 << 20
SAMPLES = 1 << 16
# Keys of a config that say how a model is run or stored, not what it computes.
RUN_TIME_KEYS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Hex digests by field: ``model_config``, ``model_weights``, ``tokenizer`` and ``chat_template``."""
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key not in RUN_TIME_KEYS and not key.startswith("_")
    }
    return {
        "model_config": _hash(json.dumps(config, sort_keys=True, default=str)),
        "model_weights": weights_digest(model),
        "tokenizer": _tokenizer_digest(tokenizer),
        "chat_template": _hash(json.dumps(tokenizer.chat_template, sort_keys=True)),
    }


def weights_digest(model: PreTrainedModel) -> str:
    """A digest of every parameter and buffer that notices any one tensor's change.

    Large tensors are sampled: evenly spaced elements, and the sum of all of their bits, on the tensor's own device.
    """
    digest = hashlib.sha256()
    for name, held in _state(model):
        tensor = _whole(held)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in _sample(tensor):
            digest.update(tensor_bytes(part))
    return digest.hexdigest()


def _state(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from sorted(model.state_dict(keep_vars=True).items())


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself; one that is sharded over processes is gathered, by all of them together."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach()
    if hasattr(tensor, ZERO3) and not tensor.numel():
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def _sample(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.numel() <= WHOLE_ELEMENTS:
        return [tensor]
    flat = tensor.reshape(-1)
    bits = flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    # A CPU sums a widened copy: in pieces it stays in the cache.
    pieces = bits.split(WHOLE_ELEMENTS) if bits.device.type == "cpu" else [bits]
    return [flat[:: tensor.numel() // SAMPLES], torch.stack([p.sum(dtype=torch.int64) for p in pieces]).sum()]


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _hash(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    return _backend_digest(backend.to_str())


@lru_cache(maxsize=2)
def _backend_digest(serialized: str) -> str:
    """Cached, since a large vocabulary takes longer to parse than to write out."""
    state = json.loads(serialized)
    # Calls with padding or truncation leave their settings behind; they are no part of what the tokenizer is.
    return _hash(json.dumps({key: state[key] for key in state if key not in ("padding", "truncation")}, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
