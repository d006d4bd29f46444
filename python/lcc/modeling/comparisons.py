"""A few random tokens read by a model itself and by this package's paths: by how much the two differ.

A comparison returns an error for each token, (cases, tokens), which is a share: of what another context would change,
or of what turning a key changes. 1 means that a path gets nothing right. Where a context changes nothing, as when all
weights are zero, the error is NaN: such a comparison says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

import lcc_kernels as lk

from .attention import attending
from .chunked_prefill import prefill_in_chunks
from .kv import KV, decoder, kv_shape
from .packed_decoder import PackedDecoder, PackedRow
from .prefill import prefill
from .shared_cache import SharedCache
from .shared_prefix_attention import SHARED_PREFIX

# sdpa, for models that hide no token but what comes later.
CAUSAL = "lcc_causal"
PREFIX, TEXT, BUFFER, SEGMENTS = 2, 6, 3, (4, 1, 3)
ENCODED = PREFIX + TEXT + BUFFER
# Of models that name no window of their own.
WINDOW = 2048
# The furthest start: beyond it, float32 rounds angles by more than right models are off.
FAR = 4096


@dataclass(frozen=True)
class Probed:
    """A model and the tokens it is asked to read: prefix, text, buffer, and segments behind them.

    Attributes:
        model: frozen, in eval mode, and nobody else's: its attention is switched.
        ids: all tokens, one part behind the other.
        starts: positions, other than 0, to which tokens are moved.
    """

    model: PreTrainedModel
    ids: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Probed:
        """Draw the tokens, and two starts inside the model's window and on one side of a change of its rope."""
        rows, count = model.get_input_embeddings().weight.shape[0], ENCODED + sum(SEGMENTS)
        drawn = torch.randint(rows, (count,), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        window = getattr(model.config, "max_position_embeddings", None) or WINDOW
        rope = model.config.rope_parameters
        if rope.get("rope_type") == "longrope":
            window = min(window, rope.get("original_max_position_embeddings") or window)
        return cls(model, tuple(drawn.tolist()), (min(37, window // 4), min(FAR, window // 2)))

    @property
    def segments(self) -> list[tuple[int, ...]]:
        """What is read behind what is encoded."""
        ends = list(accumulate(SEGMENTS, initial=ENCODED))
        return [self.ids[start:end] for start, end in pairwise(ends)]

    @cached_property
    def encoded(self) -> KV:
        """K and V, rotated, of prefix, text and buffer."""
        return prefill(self.model, self.ids[:ENCODED])

    @cached_property
    def visible(self) -> KV:
        """K and V, rotated, of prefix and buffer, at the positions of inference."""
        buffer = self.encoded.tail(BUFFER).moved(self.model, PREFIX)
        return buffer.after(self.encoded.head(PREFIX))

    @cached_property
    def other(self) -> KV:
        """K and V of as many other tokens, which tell what a context changes."""
        return prefill(self.model, self.ids[-PREFIX - BUFFER :])

    @cached_property
    def plain(self) -> torch.Tensor:
        """Last hidden states (tokens of all segments, H) of one pass over all tokens, which no cache precedes."""
        ids = torch.tensor([self.ids], device=self.model.device)
        return decoder(self.model)(input_ids=ids, use_cache=False).last_hidden_state[0, ENCODED:]

    def states(self, ids: Sequence[int], past: KV, start: int = 0) -> torch.Tensor:
        """Last hidden states (tokens, H) of ``ids`` behind ``past``, whose first token stands at ``start``."""
        tokens = torch.tensor([ids], device=self.model.device)
        positions = start + len(past) + torch.arange(len(ids), device=self.model.device)
        run = decoder(self.model)(input_ids=tokens, position_ids=positions[None], past_key_values=SharedCache(past))
        return run.last_hidden_state[0]

    def segment_states(self, past: KV) -> list[torch.Tensor]:
        """Last hidden states of each segment behind ``past``."""
        return [self.states(segment, past) for segment in self.segments]


def cache_error(probed: Probed) -> torch.Tensor:
    """0; raises ValueError unless every layer caches K and V of the shape that the config says."""
    layers, heads, width = kv_shape(probed.model.config)
    for states in (probed.encoded.keys, probed.encoded.values):
        if states.shape != (layers, heads, ENCODED, width):
            shape = tuple(states.shape[index] for index in (0, 1, 3))
            raise ValueError(f"layers, heads and widths are {shape}, not {(layers, heads, width)}")
    return torch.zeros(1, ENCODED)


def mask_error(probed: Probed) -> torch.Tensor:
    """0; raises ValueError if the model hides any token but what comes later."""
    ids = torch.tensor([probed.ids], device=probed.model.device)
    with attending(probed.model, CAUSAL):
        decoder(probed.model)(input_ids=ids, use_cache=False)
    return torch.zeros(1, len(probed.ids))


def head_error(probed: Probed) -> torch.Tensor:
    """The head's weight over the last hidden states against the model's logits, as a share of these."""
    ids = torch.tensor([probed.ids], device=probed.model.device)
    head = probed.model.get_output_embeddings()
    hidden = decoder(probed.model)(input_ids=ids, use_cache=False).last_hidden_state.to(head.weight.dtype)
    logits = probed.model(input_ids=ids, use_cache=False).logits
    return _shares(linear(hidden, head.weight, getattr(head, "bias", None)) - logits, logits)


def turning_error(probed: Probed) -> torch.Tensor:
    """K and V of tokens moved to a position against those of tokens read there, for every layer.

    Of K, a share of what turning changes; of V, of how values differ from token to token.
    """
    errors, here = [], probed.encoded
    for start in probed.starts:
        moved = here.moved(probed.model, start)
        there = prefill(probed.model, probed.ids[:ENCODED], start=start)
        pairs = (
            (there.keys - moved.keys, moved.keys - here.keys),
            (there.values - here.values, here.values - here.values.mean(2, keepdim=True)),
        )
        for pair in pairs:
            errors.append(_shares(*(states.transpose(1, 2).flatten(2) for states in pair)))
    return torch.cat(errors)


def moving_error(probed: Probed) -> torch.Tensor:
    """The segments behind K and V moved to other positions against one plain pass over all tokens."""
    moved = (probed.encoded.moved(probed.model, start) for start in (0, *probed.starts))
    return torch.stack([_rest_error(probed, encoded, encoded.start or 0) for encoded in moved])


def chunks_error(probed: Probed) -> torch.Tensor:
    """The segments behind K and V read in two chunks against one plain pass over all tokens."""
    embeddings = probed.model.get_input_embeddings()(torch.tensor([probed.ids], device=probed.model.device))
    first, last = embeddings[:, PREFIX : PREFIX + TEXT], embeddings[:, PREFIX + TEXT : ENCODED]
    read = prefill_in_chunks(probed.model, [first, last], probed.encoded.head(PREFIX), nullcontext)
    return _rest_error(probed, read.after(probed.encoded.head(PREFIX + TEXT)))[None]


def packed_error(probed: Probed) -> torch.Tensor:
    """The segments in one packed row with all before them, its last layer cut, against each behind what it sees."""
    model = probed.model
    prefix = probed.encoded.head(PREFIX)
    copied = prefix.moved(model, TEXT)

    def row(skipped: int, read: torch.Tensor | None = None) -> PackedRow:
        encoded = TEXT - skipped + BUFFER
        layout = lk.BottleneckLayout(PREFIX, TEXT - skipped, BUFFER, SEGMENTS)
        return PackedRow(layout, ((0, prefix), (encoded, copied)), skipped=skipped, read=read)

    embeddings = model.get_input_embeddings()(torch.tensor([probed.ids[PREFIX:]], device=model.device))
    positions = torch.cat([torch.arange(PREFIX, ENCODED), *(ENCODED + torch.arange(length) for length in SEGMENTS)])
    read = torch.arange(BUFFER, BUFFER + sum(SEGMENTS), device=model.device)
    rows = [row(0)] * (model.config.num_hidden_layers - 1) + [row(TEXT, read)]
    packed = PackedDecoder(model)
    try:
        states = packed(embeddings, positions.to(model.device), rows)[0, read]
    finally:
        packed.remove()
    expected = torch.cat(probed.segment_states(probed.visible))
    return _shares(states - expected, torch.cat(probed.segment_states(probed.other)) - expected)[None]


def sharing_error(probed: Probed) -> torch.Tensor:
    """The first and the last segment as a batch padded on the left, behind K and V held once, against each alone."""
    model, past = probed.model, len(probed.visible)
    first, *_, last = probed.segments
    padding = len(first) - len(last)
    ids = torch.tensor([first, (*last[:1] * padding, *last)], device=model.device)
    mask = torch.ones(2, past + len(first), dtype=torch.long, device=model.device)
    mask[1, past : past + padding] = 0
    positions = (mask.cumsum(1) - 1)[:, past:]
    with attending(model, SHARED_PREFIX):
        cache = SharedCache(probed.visible).follow(model)
        run = decoder(model)(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
    shared = torch.cat((run.last_hidden_state[0], run.last_hidden_state[1, padding:]))
    expected, other = (
        torch.cat((states[0], states[-1])) for states in map(probed.segment_states, (probed.visible, probed.other))
    )
    return _shares(shared - expected, other - expected)[None]


def _rest_error(probed: Probed, past: KV, start: int = 0) -> torch.Tensor:
    """All segments in a row behind ``past``, whose first token stands at ``start``, against one plain pass."""
    rest = probed.ids[ENCODED:]
    change = probed.states(rest, probed.other) - probed.plain
    return _shares(probed.states(rest, past, start) - probed.plain, change)


def _shares(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """For each row, (..., rows, width), the norm of ``part`` over that of ``whole``."""
    return part.float().norm(dim=-1) / whole.float().norm(dim=-1)


class _OtherMask:
    """Stands in for a mask that hides more, or less, than what comes later."""


def _causal_mask(*args: object, mask_function: Callable = causal_mask_function, **options: object) -> object:
    """sdpa's mask if it is a causal one. A model may make others and use none, so these are no error yet."""
    return sdpa_mask(*args, **options) if mask_function is causal_mask_function else _OtherMask()


def _causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | _OtherMask | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """sdpa, without what else the model wants of it; raises ValueError for a mask that is not causal."""
    if isinstance(attention_mask, _OtherMask):
        raise ValueError(f"{type(module).__name__} uses a mask that is not the causal one")
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)


AttentionInterface.register(CAUSAL, _causal_attention)
AttentionMaskInterface.register(CAUSAL, _causal_mask)
