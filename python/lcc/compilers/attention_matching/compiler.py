"""Attention Matching as a compiler: closed form, a single pass, nothing is trained (arXiv 2602.16284).

Reference queries run through the model behind the text. Each layer is matched when they reach it, so they arrive at the
next one as a reader of the memory would have them (the paper's on-policy queries). Every head keeps as many keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, ClassVar, Literal, cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from ...data.reconstruction import repetitions
from ...data.samples import DistillationData
from ...data.settings import DataSettings
from ...errors import InputError
from ...memory.payload import KVPayload
from ...modeling.attention import attending_with_state, refuse_variants
from ...modeling.kv import KV
from ...modeling.lora import frozen
from ...modeling.prefill import prefill
from ...modeling.scoring import Completion, completion_states
from ...text.context import Context
from ...text.queries import load_queries
from ...utils.settings import SettingsGroup
from ..base import BaseCompiler, Compiled, CompileTask
from ..registry import register
from .heads import SELECTIONS, Head, Selection

IMPLEMENTATION = "lcc_matching"


@dataclass(frozen=True)
class MatchingSettings(SettingsGroup):
    """Settings of Attention Matching.

    Attributes:
        matched_keys: which keys are kept: ``highest_attention``, or ``omp``, which is slower.
        matched_mass: fold into the keys what the paper adds to their scores.
        matched_on: what the reference queries are: the ``text`` repeated and general queries; or what the model asks
            itself about the text (``self_study``), which is nearer to what will be asked, and has to be made first.
        matched_tokens: reference queries at most, in tokens.
    """

    matched_keys: Literal["highest_attention", "omp"] = "highest_attention"
    matched_mass: bool = True
    matched_on: Literal["text", "self_study"] = "text"
    matched_tokens: int = 4096

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_count("matched_tokens")


@dataclass
class Matching:
    """What the layers of one pass share.

    Attributes:
        prefix, tokens: how many first tokens stay as they are, and how many there are with the text.
        kept: that each head keeps of the text.
        asked: which of the running tokens are reference queries, (batch, q_len) bool.
        keys, values: of the layers matched so far, (kv_heads, kept, head_dim), rotated.
    """

    prefix: int
    tokens: int
    kept: int
    asked: torch.Tensor
    select: Selection
    fold: bool
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def match(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> None:
        """Match one layer: query (batch, heads, q_len, head_dim), key and value (kv_heads, T, head_dim)."""
        heads = len(key)
        asked = query.transpose(1, 2)[self.asked].unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2) * scale
        matched = [
            Head(*states).matched(self.kept, self.select, self.fold) for states in zip(asked, key, value, strict=True)
        ]
        for into, parts in zip((self.keys, self.values), zip(*matched, strict=True), strict=True):
            into.append(torch.stack(parts))


def matching_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """Match the layer's text, and attend to what is matched; as transformers calls it, inside ``_matching``.

    Args:
        query: (batch, heads, q_len, head_dim), rotated.
        key, value: (batch, kv_heads, tokens + q_len, head_dim).
        attention_mask: (batch, 1, q_len, tokens + q_len), added to the scores.

    Returns:
        (batch, q_len, heads, head_dim), and no weights.
    """
    refuse_variants(module, IMPLEMENTATION, options, "take another compiler")
    matching = cast(Matching, module.matching)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefix, tokens = matching.prefix, matching.tokens
    matching.match(query, key[0, :, prefix:tokens], value[0, :, prefix:tokens], scale)
    key, value = (
        torch.cat((states[:, :, :prefix], new[-1].expand(len(states), -1, -1, -1), states[:, :, tokens:]), 2)
        for states, new in ((key, matching.keys), (value, matching.values))
    )
    mask = attention_mask[..., tokens - prefix - matching.kept :]
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, matching_attention)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


def _matching(model: PreTrainedModel, matching: Matching) -> AbstractContextManager[None]:
    """Let all layers of ``model`` be matched, one after the other, by the pass that runs inside the block."""
    return attending_with_state(model, IMPLEMENTATION, "matching", repeat(matching))


@register
class AttentionMatchingCompiler(BaseCompiler):
    """Keeps K keys of each head, and fits their values to what the text's attention gives."""

    name = "attention_matching"
    Settings = MatchingSettings
    defaults: ClassVar[Mapping[str, Any]] = {}

    def compile(self, task: CompileTask) -> Compiled:
        """Match the text in one pass of reference queries; the curve has a point, which says how long that took.

        Raises:
            InputError: the queries are to be those that the model asks itself, and it asks none.
        """
        context, model, settings = task.context, task.model, task.settings
        most, select = settings.matched_tokens, SELECTIONS[settings.matched_keys]
        completions = references(context, most) if settings.matched_on == "text" else self_asked(task.data(), most)
        began = time.monotonic()
        with frozen(model), torch.no_grad():
            prefix, text = read_text(model, context.prefix_ids, context.context_ids)
            kv, _ = matched(model, prefix, text, context.buffer, completions, select, settings.matched_mass)
            kv = kv.unrotated(model)
        point = {"step": 0, "loss": math.nan, "held_out_kl": math.nan, "seconds": time.monotonic() - began}
        return Compiled(KVPayload(kv), (point,))


def matched(
    model: PreTrainedModel,
    prefix: KV,
    text: KV,
    kept: int,
    completions: Sequence[Completion],
    select: Selection,
    fold: bool,
) -> tuple[KV, torch.Tensor]:
    """K and V (rotated) of ``kept`` tokens behind ``prefix``, matched to what ``completions`` make of ``text``.

    Args:
        prefix, text: rotated; the text may stand anywhere.
        fold: see ``Head.matched``.

    Returns:
        K and V, and the last hidden states of the completions behind them, as ``completion_states`` has them.
    """
    seen = before_reader(model, prefix, text, kept)
    asked = _read(completions).to(model.device)
    matching = Matching(len(prefix), len(seen), kept, asked, select, fold)
    with _matching(model, matching):
        states = completion_states(model, seen, completions)
    return KV(torch.stack(matching.keys), torch.stack(matching.values), prefix.end), states


def read_text(model: PreTrainedModel, prefix_ids: Sequence[int], ids: Sequence[int]) -> tuple[KV, KV]:
    """K and V, rotated, of a prefix, and of a text behind it."""
    prefix = prefill(model, prefix_ids)
    return prefix, prefill(model, ids, prefix).tail(len(ids))


def before_reader(model: PreTrainedModel, prefix: KV, text: KV, kept: int) -> KV:
    """Prefix and text, rotated, at their distances from a query that stands ``kept`` tokens behind the prefix.

    That is where a reader of the memory has its first query. The text's last token is put right before it, so the text
    reaches back to before the prefix.
    """
    first = prefix.end + kept - len(text)
    text = text.moved(model, first)
    keys, values = (torch.cat(pair, 2) for pair in ((prefix.keys, text.keys), (prefix.values, text.values)))
    return KV(keys, values, first - len(prefix))


def references(context: Context, most: int) -> list[Completion]:
    """Reference queries: the text repeated, and general queries, at most half of each; nothing is asked first."""
    chat = context.chat
    repeated = [Completion(sample.query_ids, sample.response_ids) for sample in repetitions(context, DataSettings())]
    general = [Completion(tuple(chat.query_ids(query)), (chat.end,)) for query in load_queries(None, chat.tokenizer)]
    return [*within(repeated, most // 2), *within(general, most // 2)]


def self_asked(data: DistillationData, most: int) -> list[Completion]:
    """Reference queries: short and long ones of what the model asked itself, those that are held out left out.

    Raises:
        InputError: it asked nothing.
    """
    samples = [sample for sample in data.train if sample.stream == "self_study"]
    if not samples:
        raise InputError("the model asked nothing about the text: take matched_on='text', or ask more questions")
    return [*within(sorted(samples, key=lambda sample: len(sample.input_ids)), most)]


def _read(completions: Sequence[Completion]) -> torch.Tensor:
    """Which tokens of the padded batch are the completions', (completions, longest) bool."""
    lengths = torch.tensor([len(one.input_ids) for one in completions])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def within(completions: Sequence[Completion], tokens: int) -> Sequence[Completion]:
    """Evenly spaced ones that have about so many tokens together, one at least."""
    total = sum(len(one.input_ids) for one in completions)
    return completions[:: max(1, -(-total // tokens))]
