"""Batched generation after tokens that all queries share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import InputError
from ..utils.terminal import first_line
from ..utils.values import check_count
from .architecture import supports_sharing
from .attention import attending
from .model_copy import share_weights, without_dropout
from .shared_cache import SharedCache
from .shared_prefix_attention import SHARED_PREFIX
from .window import check_window

# A checkpoint may say otherwise; without a cache, generate would read the placeholders.
FIXED: dict[str, Any] = {"use_cache": True, "return_dict_in_generate": False, "cache_implementation": None}
# Passes over rows that each hold a copy of the cached tokens hold at most this many copies.
CACHED_TOKENS = 1 << 15
# With a filled cache, transformers' assisted decoding reads the placeholders too; a checkpoint may ask for it.
ASSISTED = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens")
# These count the cached tokens among what was said; max_new_tokens and min_new_tokens do not.
COUNTING = ("min_length", "max_length")
# What generate reads instead of, or beside, the cached tokens and the queries; code from the hub.
INPUTS = (
    "inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "custom_generate",
)  # fmt: skip
# Holds options of every kind, which those of a question would override one by one.
CONFIG = "generation_config"


def batch_inputs(
    past: int, queries: Sequence[Sequence[int]], filler: int, device: torch.device, start: int = 0
) -> dict[str, torch.Tensor]:
    """``input_ids`` and ``attention_mask`` for ``generate`` behind ``past`` cached tokens.

    The cached tokens get placeholder ids, which plain decoding never reads and penalties do. Shorter queries are padded
    on the left, between the cached tokens and themselves, where the mask hides the padding and positions stay
    contiguous. When the first cached token stands at another position than 0, ``position_ids`` say so: ``generate``
    counts from 0.

    Args:
        filler: the placeholder: a token that no response holds, so that penalties of repeated tokens change nothing.

    Returns:
        All (queries, past + longest query).
    """
    length = past + max(len(query) for query in queries)
    ids = torch.full((len(queries), length), filler)
    mask = torch.ones_like(ids)
    for row, query in enumerate(queries):
        ids[row, length - len(query) :] = torch.tensor(query)
        mask[row, past : length - len(query)] = 0
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if start:
        inputs["position_ids"] = start + inputs["attention_mask"].cumsum(-1) - 1
    return inputs


def generate_after(
    model: PreTrainedModel,
    cache: SharedCache,
    queries: Sequence[Sequence[int]],
    end: int,
    filler: int | None = None,
    **options: Any,
) -> list[list[int]]:
    """New token ids for each query, cut at the first end token.

    Args:
        cache: what all queries see, held once for all of them; it grows with what is generated.
        end: the chat's end-of-response token; the model's own end tokens end a response too.
        filler: see ``batch_inputs``; by default ``end``.
        **options: those of ``generate``, ``max_new_tokens`` among them.

    Raises:
        InputError: the answers might reach beyond the model's window, or a position where its rope is another one;
            options that would read the placeholders, or that generate refuses.
    """
    _check_options(options)
    ends = end_tokens(model, end)
    longest = max(len(query) for query in queries) + options["max_new_tokens"]
    remedy = "ask less at once, begin a new chat, or take a model with a longer window"
    check_window(model, cache.get_seq_length() + longest, "text or memory, question and answer", remedy)
    inputs = batch_inputs(cache.get_seq_length(), queries, end if filler is None else filler, model.device)
    # A checkpoint's own penalties would count the placeholders for the cached tokens, and not these tokens.
    greedy: dict[str, Any] = {
        "do_sample": False, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
        **dict.fromkeys((*ASSISTED, *COUNTING, "stop_strings", "dola_layers", "token_healing")),
    }  # fmt: skip
    options = greedy | {"pad_token_id": end, "eos_token_id": sorted(ends)} | options
    if not options["do_sample"]:
        # The checkpoint's own sampling defaults would only raise warnings in greedy decoding.
        options = {"temperature": None, "top_p": None, "top_k": None} | options
    rows = len(queries) * max(options["num_beams"], options["num_return_sequences"])
    # A single sequence has nothing to share, and one tensor is read faster than two.
    shared = rows > 1 and supports_sharing(model)
    model = share_weights(model) if shared else without_dropout(model)
    with torch.no_grad(), attending(model, SHARED_PREFIX) if shared else nullcontext():
        try:
            output = model.generate(**inputs, past_key_values=cache.follow(model), **options | FIXED)
        except ValueError as error:
            raise InputError(f"generate refuses: {first_line(error)}") from error
    return [_until(row[inputs["input_ids"].shape[1] :].tolist(), ends) for row in output]


def batch_rows(copied: int) -> int:
    """Rows of a batch in which each row holds a copy of ``copied`` tokens."""
    return max(1, min(64, CACHED_TOKENS // max(1, copied)))


def _check_options(options: dict[str, Any]) -> None:
    if options.get(CONFIG) is not None:
        raise InputError(f"{CONFIG} cannot be given: give the options that it holds by their names")
    for name in ("num_beams", "num_return_sequences", "max_new_tokens"):
        check_count(name, options.get(name, 1))
    refused = [name for name in (*ASSISTED, *COUNTING, *INPUTS) if options.get(name) is not None]
    refused += [name for name, value in FIXED.items() if options.get(name, value) != value]
    if refused:
        raise InputError(
            f"{refused[0]}={options[refused[0]]!r} cannot be given: of what stands before a question only K and V are "
            "there, and answers are texts; leave it out"
        )


def end_tokens(model: PreTrainedModel, end: int) -> frozenset[int]:
    """The tokens that end a response: the chat's ``end``, and those that the model's generation config names."""
    ends = model.generation_config.eos_token_id
    named = ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends]
    return frozenset((end, *named))


def _until(ids: list[int], ends: frozenset[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in ends:
            return ids[:index]
    return ids
