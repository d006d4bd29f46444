"""The modules that write latents: queries of their own, and the model's frozen keys and values (FlashMem, equation 5).

The equations are known second hand, from notes on the paper. What they leave open is marked OURS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Literal, cast

import torch
from torch.nn import Linear
from torch.nn.functional import linear, pad, silu
from transformers import PreTrainedModel

from ...errors import InputError
from ...modeling.kv import KV, decoder, kv_shape, rotary_tables_at
from ...modeling.module_patching import running
from ...modeling.shared_cache import SharedCache
from .attention import FrozenText, asking, latents_kv

Form = Literal["per_layer", "last"]
Trained = Literal["queries", "reading", "all"]
# Names of a layer's projections that make queries, keys and values; of all three, queries first; keys and values.
ASKING, FUSED, KEYS = "q_proj", "qkv_proj", ("k_proj", "v_proj")


@dataclass(frozen=True)
class ReadText:
    """A text as the frozen model reads it behind the chat's prefix; no graph leads to it.

    Attributes:
        kv: of prefix and text, rotated.
        hidden: last hidden states of the text, (n, H).
        embeddings: of the text, (n, H).
    """

    kv: KV
    hidden: torch.Tensor
    embeddings: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, prefix: KV, ids: Sequence[int]) -> ReadText:
        """Read ``ids`` behind ``prefix``, which is rotated."""
        embeddings = model.get_input_embeddings()(torch.tensor([list(ids)], device=model.device))
        positions = torch.arange(prefix.end, prefix.end + len(ids), device=model.device)
        cache = SharedCache(prefix)
        output = decoder(model)(inputs_embeds=embeddings, position_ids=positions[None], past_key_values=cache)
        return cls(cache.kv(), output.last_hidden_state[0], embeddings[0])


class Seeds(torch.nn.Module):
    """The MLP that makes seeds of hidden states: m_0 = W_2 silu(W_1 h + b_1) + b_2, float32. The width 2 H is OURS."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = Linear(width, 2 * width), Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., H) in the dtype of ``hidden``."""
        return self.outer(silu(self.inner(hidden.to(self.inner.weight.dtype)))).to(hidden.dtype)


class LowRank(torch.nn.Module):
    """What is added to a projection of the model, B A x: zero at first, float32. That it is of low rank is OURS."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = torch.nn.Parameter(torch.empty(rank, inputs))
        self.up = torch.nn.Parameter(torch.zeros(outputs, rank))
        torch.nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(..., outputs) in the dtype of ``states``."""
        return linear(linear(states.to(self.down.dtype), self.down), self.up).to(states.dtype)


class Consolidator(torch.nn.Module, ABC):
    """Writes the latents of a text. What it reads are the keys and values that the model has made of the text.

    Args:
        rank: of what makes its projections differ from the model's.
        trained: which ones do. ``queries``: W_Q alone. ``reading``: W_O and the FFN too. ``all``: W_K and W_V of the
            latents too, where their own K and V stay. A text's K and V are the model's in any case.

    Attributes:
        seeds: makes the first latents of hidden states.
        parts: of each of ``layers``, by the names of the projections.
        layers: of the model, those that it has projections of its own for.
        keeps: the pass through these layers makes the K and V that stay.
    """

    form: ClassVar[Form]
    layers: ClassVar[slice]
    keeps: ClassVar[bool]

    def __init__(self, model: PreTrainedModel, rank: int, trained: Trained):
        super().__init__()
        self.rank, self.trained = rank, trained
        self.seeds = Seeds(model.config.hidden_size)
        self.parts = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {name: LowRank(each.in_features, outputs, rank) for name, (each, outputs) in found.items()}
            )
            for found in (self._found(model, layer) for layer in decoder(model).layers[self.layers])
        )
        self.to(model.device)

    @abstractmethod
    def write(self, model: PreTrainedModel, text: ReadText, count: int) -> KV:
        """K and V of ``count`` latents, keys unrotated; differentiable in the module's parameters."""

    @contextmanager
    def inside(self, model: PreTrainedModel) -> Iterator[None]:
        """The layers of ``model`` have the consolidator's projections inside the block."""
        pairs: list[tuple[Linear, Any]] = []
        for layer, parts in zip(decoder(model).layers[self.layers], self.parts, strict=True):
            found = self._found(model, layer)
            pairs += [(found[name][0], part) for name, part in cast(torch.nn.ModuleDict, parts).items()]
        with running([projection for projection, _ in pairs], [_sum(*pair) for pair in pairs]):
            yield

    def _found(self, model: PreTrainedModel, layer: torch.nn.Module) -> dict[str, tuple[Linear, int]]:
        """The projections of a layer that the consolidator has of its own, and how many of the outputs of each.

        Raises:
            InputError: none of them makes queries.
        """
        names = {name.rpartition(".")[2]: each for name, each in layer.named_modules() if isinstance(each, Linear)}
        if not names.keys() & {ASKING, FUSED}:
            raise InputError(f"{type(layer).__name__} has no {ASKING} or {FUSED} to ask with: take another compiler")
        keeps = self.keeps and self.trained == "all"
        # What the last layer gives out goes nowhere, where K and V are what stays.
        asks = not (self.keeps and layer is decoder(model).layers[-1])
        queries = model.config.num_attention_heads * kv_shape(model.config)[2]
        found = {}
        for name, each in names.items():
            if name in (FUSED, *KEYS) and keeps:
                found[name] = each, each.out_features
            elif name in (FUSED, ASKING) and asks:
                found[name] = each, queries
            elif name not in (FUSED, ASKING, *KEYS) and asks and self.trained != "queries":
                found[name] = each, each.out_features
        return found


class LastLayerConsolidator(Consolidator):
    """The paper's: one layer asks the last layer's cache, and writes latents one after another, greedily.

    m_0 = MLP(h_last), and from m_i comes m_{i+1}: u = norm(m_i); o = Attn(rope(u W_Q), K, V) W_O; x = m_i + o;
    m_{i+1} = x + FFN(norm(x)). OURS: the cache is that of the last layer alone, and no latent sees another; norms are
    the model's, and so are W_O and FFN unless they are trained; m_i stands at T + i; m_0 is no latent itself.
    """

    form, layers, keeps = "last", slice(-1, None), False

    def embeddings(self, model: PreTrainedModel, text: KV, hidden: torch.Tensor, count: int) -> torch.Tensor:
        """Latents as input embeddings, (count, H); differentiable in the module's parameters.

        Args:
            text: K and V, rotated, of what has been read.
            hidden: the last hidden state of its last token, (H,).
        """
        layer, latents = decoder(model).layers[-1], []
        sees = torch.arange(len(text) + 1, device=hidden.device)[None] < len(text)
        last = FrozenText(text.keys[-1], text.values[-1], sees)
        positions = torch.arange(text.end, text.end + count, device=hidden.device)
        tables = rotary_tables_at(model, positions, hidden.dtype)
        state = self.seeds(hidden)[None, None]
        with self.inside(model), asking(model, repeat(last)):
            for place in range(count):
                cos, sin = (table[None, place : place + 1] for table in tables)
                state = layer(state, position_embeddings=(cos, sin))
                latents.append(state[0, 0])
        return torch.stack(latents)

    def write(self, model: PreTrainedModel, text: ReadText, count: int) -> KV:
        """The latents run through the model with the text visible, and their own K and V stay.

        That is this package's adaptation: the paper appends latents and evicts nothing.
        """
        inputs = self.embeddings(model, text.kv, text.hidden[-1], count)
        tokens = len(text.kv)
        positions = torch.arange(text.kv.end, text.kv.end + count, device=inputs.device)
        sees = torch.ones(count, tokens + count, dtype=torch.bool, device=inputs.device).tril(tokens)
        return latents_kv(model, text.kv, inputs, positions, sees)


class PerLayerConsolidator(Consolidator):
    """OURS: every layer has projections of its own, and latents stand at even distances in the text.

    A latent stands for a piece of the text. Its seed is the embedding of the piece's last token, and MLP(h) of that
    token's last hidden state. It has the token's position, and sees the text before that, the latents before it, and
    itself. Its own K and V in every layer are what stays. ``trained="all"`` gives the module a W_K and a W_V for them,
    which the paper's has not. All are written in one pass.

    Before training the MLP and the low-rank parts give zero. A latent is then the token itself, having read the latents
    before it as well.
    """

    form, layers, keeps = "per_layer", slice(None), True

    def __init__(self, model: PreTrainedModel, rank: int, trained: Trained):
        super().__init__(model, rank, trained)
        for parameter in self.seeds.outer.parameters():
            torch.nn.init.zeros_(parameter)

    def write(self, model: PreTrainedModel, text: ReadText, count: int) -> KV:
        """The latents' own K and V in one pass."""
        length, tokens, device = len(text.hidden), len(text.kv), text.hidden.device
        places = torch.arange(1, count + 1, device=device) * length // count - 1
        positions = text.kv.end - length + places
        before = torch.arange(tokens, device=device) < tokens - length + places[:, None]
        earlier = torch.ones(count, count, dtype=torch.bool, device=device).tril()
        sees = torch.cat((before, earlier), 1)
        inputs = text.embeddings[places] + self.seeds(text.hidden[places])
        with self.inside(model):
            return latents_kv(model, text.kv, inputs, positions, sees)


FORMS: dict[str, Any] = {each.form: each for each in (PerLayerConsolidator, LastLayerConsolidator)}


def _sum(projection: Linear, part: LowRank) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward of ``projection``, with ``part`` added to its first outputs."""
    forward = projection.forward

    def run(states: torch.Tensor) -> torch.Tensor:
        out, added = forward(states), part(states)
        return out + pad(added, (0, out.shape[-1] - added.shape[-1]))

    return run
