"""Quantise a memory, and measure what that costs in answers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.reader import Reader, changed_share
from ..memory.memory import Memory
from ..memory.quantization import check_request, quantize_payload
from ..modeling.model_copy import share_weights
from ..modeling.wrappers import plain_model
from ..text.chat_format import ChatFormat, Query
from ..text.queries import load_queries
from ..utils.random_state import sample_up_to


def quantize(
    memory: Memory,
    dtype: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: str | Path | Iterable[str] | None = None,
    answers: int = 128,
    max_new_tokens: int = 64,
) -> Memory:
    """Store K and V as ``int8``, ``fp8`` (e4m3) or ``int4``, and measure what that changes.

    ``lcc.evaluation.quantization_cost.quantize_payload`` has the arithmetic. ``attach`` multiplies the scales back in.

    The measurement asks the questions that compile asked itself, and context-agnostic queries. First the float memory
    answers greedily, and KL(float || quantised) is taken over the tokens of its answers. Then the quantised memory
    answers on its own. ``quantization`` holds the result: ``source_dtype``, and for each of ``self_study`` and
    ``general`` the ``answers``, their ``tokens``, ``kl`` in nats a token and ``changed``, the share of answers that are
    not the float memory's word for word. The certificate stays as it was measured, on the float memory.

    Args:
        queries: context-agnostic ones, see ``lcc.load_queries``; by default the package's own, some of which the
            memory was trained on.
        answers: how many of each kind to ask at most, drawn with a fixed seed.
        max_new_tokens: longest answer.

    Raises:
        InputError: an unknown dtype, no answers to measure with, a memory that is quantised already, or an odd
            head_dim for int4.
        MismatchError: the memory belongs to another model or tokenizer.
    """
    check_request(memory, dtype, answers)
    model = share_weights(plain_model(model))
    memory.verify(model, tokenizer)
    payload, made = quantize_payload(memory.kv_payload, dtype), memory.succeeded_by("quantize", {"dtype": dtype})
    quantized = replace(memory, payload=payload, **made)
    streams: dict[str, Sequence[Query]] = {"self_study": memory.questions, "general": load_queries(queries, tokenizer)}
    chat = ChatFormat.of(tokenizer, date=memory.date)
    reference, reader = (Reader.of_memory(model, chat, either) for either in (memory, quantized))
    cost: dict[str, Any] = {"source_dtype": memory.dtype}
    for stream, asked in streams.items():
        drawn = sample_up_to(random.Random(0), asked, answers)
        if drawn:
            cost[stream] = _compare(reference, reader, drawn, max_new_tokens)
    return replace(quantized, quantization=cost)


def _compare(reference: Reader, reader: Reader, queries: Sequence[Query], max_new_tokens: int) -> dict[str, float]:
    """How the answers of ``reader`` differ from those of ``reference``."""
    first, second = (either.say(queries, max_new_tokens) for either in (reference, reader))
    return {
        "answers": len(queries),
        "tokens": sum(map(len, first.responses)),
        "kl": first.kl(reader),
        "changed": changed_share(first.responses, second.responses),
    }
