"""What a memory belongs to: what a model computes, by config and weights, and a tokenizer with its chat template."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import MismatchError
from ..utils.hashing import tensor_digest
from .weights import named_weights
from .wrappers import plain_model

# Keys of a config that say how a model is named, stored, trained, run or what it returns, not what it computes.
RUN_TIME_KEYS = frozenset({
    "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype", "output_hidden_states",
    "output_attentions", "return_dict", "use_cache", "chunk_size_feed_forward", "id2label", "label2id", "num_labels",
    "problem_type", "tokenizer_class", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
    "sep_token_id", "torchscript", "finetuning_task", "task_specific_params", "keys_to_ignore_at_inference",
    "model_max_length", "gradient_checkpointing", "license", "unsloth_version",
})  # fmt: skip
GENERATION_KEYS = frozenset(GenerationConfig().to_dict())
# Of bitsandbytes' settings, those that the weights do not show.
QUANTIZATION_KEYS = frozenset({"quant_method", "load_in_8bit", "load_in_4bit", "llm_int8_threshold"})
# Of a tokenizer: what calls with padding or truncation leave behind, and special tokens that are never asked for.
UNUSED = ("padding", "truncation", "post_processor")
# Recorded to explain other weights; the same numbers in another dtype are the same model.
DTYPE = "model_dtype"


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, str]:
    """Hex digests ``model_config`` and ``model_weights``, the weights' ``model_dtype``, and those of the tokenizer.

    Args:
        model: plain, or inside wrappers that change nothing: see ``plain_model``.
        tokenizer: adds ``tokenizer`` and ``chat_template``.

    Raises:
        InputError: what ``plain_model`` refuses; weights that cannot be read.
    """
    model = plain_model(model)
    digests = model_digests(model) | {DTYPE: str(model.dtype).removeprefix("torch.")}
    return digests if tokenizer is None else digests | tokenizer_fingerprint(tokenizer)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Hex digests ``tokenizer`` and ``chat_template``."""
    return {
        "tokenizer": _tokenizer_digest(tokenizer),
        "chat_template": _hash(json.dumps([tokenizer.chat_template, *_template_tokens(tokenizer)], sort_keys=True)),
    }


def _template_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, str | None]:
    """Tokens that chat templates write by their roles, and that end responses."""
    return tokenizer.bos_token, tokenizer.eos_token


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The fields in which two fingerprints are of different models or tokenizers."""
    return [name for name in sorted(one | other) if name != DTYPE and one.get(name) != other.get(name)]


def require_same(recorded: dict[str, str], given: dict[str, str]) -> None:
    """Refuse a model and tokenizer, or one of both, other than those whose fingerprint a memory recorded.

    Args:
        given: of the model, the tokenizer or both.

    Raises:
        MismatchError: naming the fields that differ, and the dtype to load the model in if that may be why.
    """
    other = differing({name: recorded[name] for name in recorded.keys() & given.keys()}, given)
    if not other:
        return
    remedy = "load the one it was compiled for, or compile the text again"
    was, now = recorded.get(DTYPE), given.get(DTYPE)
    if "model_weights" in other and was and now and was != now:
        remedy = (
            f"the weights are {now} here and were {was} when the memory was compiled: load the model with "
            f"dtype=torch.{was}"
        )
    raise MismatchError(
        f"the memory was compiled for another {' and '.join(name.replace('_', ' ') for name in other)} "
        f"({', '.join(other)}): {remedy}"
    )


def computed_config(config: PreTrainedConfig) -> dict[str, Any]:
    """What ``config`` says about what the model computes; fields that are not known to say nothing count."""
    content = config.to_dict()
    # A key of generation configs may be what another architecture calls something of its own.
    # Before transformers 5.3 configs are plain classes.
    declared = {field.name for field in fields(config)} if is_dataclass(config) else set()
    own = declared | inspect.signature(type(config).__init__).parameters.keys()
    ignored = RUN_TIME_KEYS | (GENERATION_KEYS - own)
    stored = content.get("quantization_config") or {}
    if stored.get("quant_method") == "bitsandbytes":
        content["quantization_config"] = {key: stored[key] for key in QUANTIZATION_KEYS & stored.keys()}
    return _computed(content, ignored)


def _computed(content: dict, ignored: frozenset[str]) -> dict[str, Any]:
    return {
        str(key): _computed(value, ignored) if isinstance(value, dict) else value
        for key, value in content.items()
        if not (key in ignored or str(key).startswith("_") or "dropout" in str(key) or str(key).endswith("_pdrop"))
    }


def model_digests(model: PreTrainedModel) -> dict[str, str]:
    """``model_config`` and ``model_weights``: what tells the model from others, in whatever dtype it is."""
    return {"model_config": config_digest(model), "model_weights": weights_digest(plain_model(model))}


def config_digest(model: PreTrainedModel) -> str:
    """A digest of what the model's config says about what it computes."""
    return _hash(json.dumps(computed_config(plain_model(model).config), sort_keys=True, default=str))


def weights_digest(model: torch.nn.Module) -> str:
    """A digest of every parameter's and stored buffer's numbers, names and shapes; see ``tensor_digest``."""
    digests = {name: tensor_digest(tensor) for name, tensor in named_weights(model)}
    return hashlib.sha256(b"".join(name.encode() + b"\n" + digests[name] for name in sorted(digests))).hexdigest()


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return _hash(json.dumps(tokenizer.get_vocab(), sort_keys=True))
    return _backend_digest(backend.to_str())


@lru_cache(maxsize=2)
def _backend_digest(serialized: str) -> str:
    """Cached, since a large vocabulary takes longer to parse than to write out."""
    state = json.loads(serialized)
    return _hash(json.dumps({key: state[key] for key in state if key not in UNUSED}, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
