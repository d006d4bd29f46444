"""Smaller memories: int8 or fp8 K and V, and a measurement of what that costs in answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, MismatchError
from ..inference.reader import Reader, changed_share, kl_between
from ..modeling.kv import KV
from ..modeling.model_copy import share_weights
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat, Query
from ..text.queries import load_queries
from ..utils.outputs import Output
from ..utils.values import check, require
from .attachment import attach
from .memory import Memory

# The dtype of each format, and its largest number.
FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


def quantize(
    memory: Memory,
    dtype: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: str | Path | Iterable[str] | None = None,
    answers: int = 128,
    max_new_tokens: int = 64,
) -> Memory:
    """Store K and V as ``int8`` or ``fp8`` (e4m3), and measure what that changes.

    Symmetric, to the nearest: keys have a scale a head and channel over all tokens, since before rotation their large
    channels are the same at every token (KVQuant, arXiv 2401.18079, section 3); values have one a head and token
    (KIVI, arXiv 2402.02750). ``attach`` multiplies the scales back in.

    The measurement asks the questions that compile asked itself, and context-agnostic queries. The float memory answers
    greedily, and over those answers' tokens KL(float || quantised) is taken; then the quantised memory answers on its
    own. The result goes into ``quantization``: ``source_dtype``, and for each of ``self_study`` and ``general`` the
    ``answers``, their ``tokens``, ``kl`` in nats a token and ``changed``, the share of answers that are not the float
    memory's word for word. A certificate stays as it was measured, on the float memory.

    Args:
        queries: context-agnostic ones, see ``lcc.load_queries``; by default the package's own, some of which the
            memory was trained on.
        answers: how many of each kind to ask at most, drawn with a fixed seed.
        max_new_tokens: longest answer.

    Raises:
        InputError: an unknown dtype, no answers to measure with, or a memory that is quantised already.
        MismatchError: the memory belongs to another model or tokenizer.
    """
    check_request(memory, dtype, answers)
    model = share_weights(plain_model(model))
    memory.verify(model, tokenizer)
    kv, key_scale, value_scale = quantize_kv(memory.kv, dtype)
    quantized = replace(memory, kv=kv, key_scale=key_scale, value_scale=value_scale)
    asked: dict[str, Sequence[Query]] = {"self_study": memory.questions, "general": load_queries(queries)}
    chat = ChatFormat.of(tokenizer, date=memory.date)
    reference, reader = (Reader(model, chat, attach(model, each, verify=False).read()) for each in (memory, quantized))
    report: dict[str, Any] = {"source_dtype": memory.dtype}
    for stream, asking in asked.items():
        drawn = random.Random(0).sample(asking, min(answers, len(asking)))
        if drawn:
            report[stream] = _compare(reference, reader, drawn, max_new_tokens)
    return replace(quantized, quantization=report)


def check_request(memory: Memory, dtype: str, answers: int) -> None:
    """Refuse what cannot be quantised, or measured.

    Raises:
        InputError: an unknown dtype, no answers to measure with, or a memory that is quantised already.
    """
    if dtype not in FORMATS:
        raise InputError(f"unknown dtype {dtype!r}; there are {', '.join(FORMATS)}")
    check("answers", answers, int)
    require(answers >= 1, "answers", answers, "at least 1: on them quantising is measured")
    if memory.quantized:
        raise InputError(f"the memory is {memory.dtype} already: quantise the float memory that it was made from")


def quantized_output(path: Path, memory: Memory, inputs: Iterable[Path] = (), force: bool = False) -> Output:
    """The file that a quantised ``memory`` goes to: it replaces quantised memories of the same text."""

    def quantized_one(path: Path) -> None:
        found = Memory.load(path)
        if found.source_sha256 != memory.source_sha256 or not found.quantized:
            raise MismatchError(f"{path} is there already, and is no quantised memory of the same text")

    return Output(path, tuple(inputs), force, quantized_one)


def quantize_kv(kv: KV, dtype: str) -> tuple[KV, torch.Tensor, torch.Tensor]:
    """Quantised K and V with their scales, (layers, kv_heads, head_dim) and (layers, kv_heads, tokens) float32."""
    target, largest = FORMATS[dtype]
    key_scale, value_scale = _scale(kv.keys, 2, largest), _scale(kv.values, 3, largest)
    keys = _round(kv.keys.float() / key_scale[:, :, None], target, largest)
    values = _round(kv.values.float() / value_scale[..., None], target, largest)
    return KV(keys, values), key_scale, value_scale


def _scale(x: torch.Tensor, dim: int, largest: float) -> torch.Tensor:
    scale = x.float().abs().amax(dim) / largest
    return torch.where(scale > 0, scale, 1.0)


def _round(x: torch.Tensor, dtype: torch.dtype, largest: float) -> torch.Tensor:
    """To the nearest number of ``dtype``; the cast of a float8 rounds by itself."""
    return (x.round() if dtype == torch.int8 else x).clamp(-largest, largest).to(dtype)


def _compare(reference: Reader, reader: Reader, queries: Sequence[Query], max_new_tokens: int) -> dict[str, float]:
    """What the second reader answers otherwise than the first."""
    first, second = (each.respond(queries, max_new_tokens) for each in (reference, reader))
    return {
        "answers": len(queries),
        "tokens": sum(map(len, first)),
        "kl": kl_between(reference, reader, queries, first),
        "changed": changed_share(first, second),
    }
