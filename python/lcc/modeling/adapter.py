"""Adapters: LoRAs as tensors, and a copy of a model that acts under one, or each row of a batch under its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from ..errors import InputError, MismatchError
from .architecture import check_architecture
from .kv import decoder
from .model_copy import private_copy
from .sharding import is_sharded
from .wrappers import AdapterHook, plain_modules


@dataclass(frozen=True)
class Adapter:
    """A LoRA (arXiv 2106.09685): a linear layer's output for x becomes W x + (alpha / rank) B A x.

    Attributes:
        down: A by the names of the linear layers in the plain model, each (rank, in features).
        up: B by the same names, each (out features, rank).
        alpha: see above.
        cache_sharing: it acts from the last token of a query on, and the model reads what stands before as it is: the
            K and V of a query serve every adapter (CDLM, arXiv 2605.28889, equation 3). False: it acts on all tokens.
    """

    down: dict[str, torch.Tensor]
    up: dict[str, torch.Tensor]
    alpha: float
    cache_sharing: bool = True

    @property
    def rank(self) -> int:
        """Rows of A."""
        return next(iter(self.down.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of A and B."""
        return sum(tensor.nbytes for tensor in (*self.down.values(), *self.up.values()))


class Tokens(Enum):
    """Which tokens of a pass the adapters act on."""

    ALL = "all"
    LAST = "last"


class AdaptedModel:
    """A private copy of a model whose linear layers act under adapters. The model is left as it is.

    With one adapter, every sequence of a batch is under it. With several, sequence i is under number i: A (sequences,
    rank, in) and B (sequences, out, rank) are stacked, and a linear layer costs two batched products more.

    Adapters with ``cache_sharing`` act on the last token of each pass alone, unless ``acting_on`` says otherwise: a
    query is read in one pass, and each token of the response in another. So K and V of a query's other tokens are the
    model's own. Queries of several lengths are padded on the left.

    Args:
        adapters: None stands for the model as it is: zeros are added to what its layers give. Smaller ranks are padded
            with zeros.

    Attributes:
        model: the copy.
        adapters: how many there are.

    Raises:
        InputError: there is no adapter; the model is not supported, or its weights are sharded; adapters act on
            different tokens.
        MismatchError: an adapter is for layers that the model does not have.
    """

    def __init__(self, model: PreTrainedModel, adapters: Sequence[Adapter | None]):
        given = [adapter for adapter in adapters if adapter is not None]
        if not given:
            raise InputError("there is no adapter: give at least one")
        if is_sharded(model):
            raise InputError("the model's weights are sharded, and an adapter needs whole ones: load it on one device")
        if len({adapter.cache_sharing for adapter in given}) > 1:
            raise InputError("some of the adapters act on queries and some do not: read them one after the other")
        # The verdict on the plain model is the copy's too.
        check_architecture(model)
        layers = adaptable_layers(model)
        for adapter in given:
            check_fits(adapter, layers)
        self.model, self.adapters = private_copy(model), len(adapters)
        self._tokens: Tokens | torch.Tensor = Tokens.LAST if given[0].cache_sharing else Tokens.ALL
        self._stacks = {
            name: _stacked(adapters, name, layers[name]) for name in sorted({name for a in given for name in a.down})
        }
        self._chosen = self._stacks
        for name, layer in adaptable_layers(self.model).items():
            if name in self._stacks:
                layer.register_forward_hook(AdapterHook(self._add, name))

    @property
    def nbytes(self) -> int:
        """Bytes of all adapters, as they are stacked."""
        return sum(tensor.nbytes for pair in self._stacks.values() for tensor in pair)

    @contextmanager
    def choosing(self, rows: Sequence[int]) -> Iterator[None]:
        """Inside the block, sequence i is under adapter ``rows[i]``: their A and B are gathered once for each layer.

        Raises:
            InputError: there are no rows.
        """
        if not rows:
            raise InputError("no adapter is chosen: name at least one")
        places: slice | torch.Tensor = torch.tensor(rows, device=self.model.device)
        if [*rows] == [*range(rows[0], rows[0] + len(rows))]:
            places = slice(rows[0], rows[0] + len(rows))  # no copy
        before, self._chosen = self._chosen, {n: (a[places], b[places]) for n, (a, b) in self._stacks.items()}
        try:
            yield
        finally:
            self._chosen = before

    @contextmanager
    def acting_on(self, rows: torch.Tensor | None) -> Iterator[None]:
        """Inside the block, a single adapter acts on ``rows`` of (batch, tokens) as one, int64; None: on all tokens.

        Does nothing to an adapter that acts on all tokens anyway.
        """
        before = self._tokens
        if before is not Tokens.ALL:
            self._tokens = Tokens.ALL if rows is None else rows
        try:
            yield
        finally:
            self._tokens = before

    def _add(self, name: str, layer: torch.nn.Module, inputs: tuple, out: torch.Tensor) -> torch.Tensor:
        """``out`` of a linear layer, (batch, tokens, out features), and what the adapters add to it."""
        hidden, tokens = inputs[0], self._tokens
        if isinstance(tokens, torch.Tensor):
            flat = out.flatten(0, 1)
            update = self._update(name, hidden.flatten(0, 1).index_select(0, tokens)[None])[0]
            return flat.index_add(0, tokens, update.to(out.dtype)).view_as(out)
        if tokens is Tokens.ALL:
            return out + self._update(name, hidden).to(out.dtype)
        update = self._update(name, hidden[:, -1:]).to(out.dtype)
        return torch.cat((out[:, :-1], out[:, -1:] + update), 1)

    def _update(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        down, up = self._chosen[name]
        hidden = hidden.to(down.dtype)
        if len(down) == 1:
            return linear(linear(hidden, down[0]), up[0])
        if len(hidden) != len(down):
            raise ValueError(f"a batch of {len(hidden)} sequences is under {len(down)} adapters: give one for each")
        return hidden @ down.mT @ up.mT


def adaptable_layers(model: PreTrainedModel) -> dict[str, torch.nn.Linear]:
    """The linear layers of the decoder by their names in the plain model."""
    inside = {id(module) for module in decoder(model).modules()}
    return {
        prefix.removesuffix("."): module
        for prefix, module in plain_modules(model)
        if isinstance(module, torch.nn.Linear) and id(module) in inside
    }


def check_fits(adapter: Adapter, layers: dict[str, torch.nn.Linear]) -> None:
    """Refuse an adapter whose layers are not ``layers``.

    Raises:
        MismatchError: naming the layer.
    """
    for name, down in adapter.down.items():
        shape = down.shape[1], adapter.up[name].shape[0]
        if name not in layers:
            raise MismatchError(f"the adapter is for a layer {name}, which the model does not have")
        if shape != (layers[name].in_features, layers[name].out_features):
            have = layers[name].in_features, layers[name].out_features
            raise MismatchError(f"the adapter is for a layer {name} of {shape[0]} x {shape[1]}; the model's is {have}")


def _stacked(
    adapters: Sequence[Adapter | None], name: str, layer: torch.nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (adapters, rank, in) and alpha / rank times B (adapters, out, rank) of a layer, of the largest rank."""
    held = [adapter if adapter is not None and name in adapter.down else None for adapter in adapters]
    rank = max(adapter.rank for adapter in held if adapter is not None)
    sample = next(adapter for adapter in held if adapter is not None)
    dtype, device = sample.down[name].dtype, layer.weight.device
    downs = torch.zeros(len(held), rank, layer.in_features, dtype=dtype, device=device)
    ups = torch.zeros(len(held), layer.out_features, rank, dtype=dtype, device=device)
    for row, adapter in enumerate(held):
        if adapter is not None:
            downs[row, : adapter.rank] = adapter.down[name]
            ups[row, :, : adapter.rank] = adapter.up[name].to(device, dtype) * (adapter.alpha / adapter.rank)
    return downs, ups
