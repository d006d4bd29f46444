"""Packed rows [P | C | B | P' | segments] through the model in one pass (identities 1, 5 and 6: docs/glossary.md).

Importing this file makes ``lcc_bottleneck`` a transformers attention implementation that takes its mask as spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

import lcc_kernels as lk

from .attention import attending, refuse_variants
from .kv import KV, decoder
from .module_patching import mlp_on, running

NAME = "lcc_bottleneck"

# The rows that a LoRA acts on: how many from the first, or which, (rows,) int64; None for all.
Rows = int | torch.Tensor | None
# (rows that run before it, keys, values) of rows whose K and V are known, (1, kv_heads, tokens, head_dim).
Given = Sequence[tuple[int, torch.Tensor, torch.Tensor]]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    spans: torch.Tensor | None = None,
    given: Given = (),
    **options: object,
) -> tuple[torch.Tensor, None]:
    """``lcc_kernels.bottleneck_attention`` as transformers calls it.

    Args:
        query: (1, heads, rows that run, head_dim); key and value (1, kv_heads, rows that run, head_dim), rotated.
        attention_mask: None; the spans say who sees whom.
        spans: ``BottleneckLayout.spans`` of all rows, given ones included; a tensor, so that ``torch.compile`` keeps
            its graph when lengths change.
        given: the rows that do not run, in row order.

    Returns:
        (1, rows that run, heads, head_dim), and no weights.

    Raises:
        ValueError: no spans, a mask or dropout, or an attention variant that the op does not compute.
    """
    if spans is None:
        raise ValueError(f"{NAME} needs the keyword spans=BottleneckLayout(...).spans in the layer's forward")
    refuse_variants(module, NAME, options, "use engine='reference'")
    if attention_mask is not None or dropout:
        raise ValueError(
            f"{NAME} takes its mask from the layout and has no dropout: pass no mask and call model.eval()"
        )
    dtype = _attention_dtype(query)
    # Given rows ask nothing: zeros stand in for their queries.
    asked = _among(query.to(dtype), [(at, query.new_zeros(1, query.shape[1], *k.shape[2:])) for at, k, _ in given])
    keys = _among(key.to(dtype), [(at, k) for at, k, _ in given])
    values = _among(value.to(dtype), [(at, v) for at, _, v in given])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, _ = torch.ops.lcc_kernels.bottleneck_attention(asked, keys, values, spans, scale, "auto")
    return _without(out.transpose(1, 2), [(at, k.shape[2]) for at, k, _ in given]), None


AttentionInterface.register(NAME, packed_attention)


def _attention_dtype(query: torch.Tensor) -> torch.dtype:
    """What torch's own attention would compute in: half precision under autocast."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _among(running: torch.Tensor, given: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Put the given rows among the running ones, (1, heads, rows, head_dim)."""
    parts, done = [], 0
    for at, rows in given:
        parts += [running[:, :, done:at], rows.to(running.dtype)]
        done = at
    return torch.cat([*parts, running[:, :, done:]], 2)


def _without(out: torch.Tensor, given: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The running rows of ``out`` (1, rows, ...), contiguous; given are (running rows before, rows)."""
    parts, done, skipped = [], 0, 0
    for at, rows in given:
        parts.append(out[:, done + skipped : at + skipped])
        done, skipped = at, skipped + rows
    return torch.cat([*parts, out[:, done + skipped :]], 1)


@dataclass(frozen=True)
class PackedRow:
    """One packed row as a layer runs it.

    Attributes:
        layout: who sees whom among all rows.
        given: (rows that run before it, K and V, rotated) of the rows that do not run, in row order.
        adapted: which of the rows that run the LoRA acts on.
        skipped: rows of the layer before that this one does not run, from its first.
        read: which of the rows that run anyone reads the output of, (rows,) int64; None for all. Its MLP runs on no
            other.
    """

    layout: lk.BottleneckLayout
    given: tuple[tuple[int, KV], ...] = ()
    adapted: Rows = 0
    skipped: int = 0
    read: torch.Tensor | None = None

    @property
    def running(self) -> int:
        """How many rows run."""
        return self.layout.total - sum(len(kv) for _, kv in self.given)

    @property
    def adapted_read(self) -> Rows:
        """Which of the rows that are read the LoRA acts on."""
        if self.adapted is None or self.read is None:
            return self.adapted
        if isinstance(self.adapted, torch.Tensor):
            return torch.isin(self.read, self.adapted).nonzero()[:, 0]
        return int((self.read < self.adapted).sum())

    def options(self, layer: int) -> dict[str, Any]:
        """What ``packed_attention`` takes in ``layer``."""
        given = [(at, kv.keys[layer][None], kv.values[layer][None]) for at, kv in self.given]
        return {"spans": self.layout.spans, "given": given}


class PackedDecoder:
    """Runs packed rows through the decoder layers of a model, its LoRA acting on the rows that the packed row says.

    Args:
        model: a causal language model in eval mode, plain or with a peft LoRA that is switched off.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._adapted: Rows = 0
        adapters = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._hooks = [adapter.register_forward_hook(self._adapt) for adapter in adapters]

    def remove(self) -> None:
        """Take the hooks off the LoRA, which otherwise keeps them as long as it lives."""
        for hook in self._hooks:
            hook.remove()

    def __call__(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        rows: Sequence[PackedRow],
        checkpointing: bool = False,
        compiled: bool = False,
    ) -> torch.Tensor:
        """Last hidden states (1, rows that the last layer runs, H).

        Args:
            embeddings: (1, rows that the first layer runs, H).
            positions: of these rows, (rows,) int64.
            rows: the packed row of each layer.
            checkpointing: keep a layer's input alone, and compute the rest again in the backward.
            compiled: run each layer as one ``torch.compile`` graph, for whatever lengths.

        Raises:
            ValueError: the rows do not fit, or the model attends in a way that the op does not compute.
        """
        _check(embeddings.shape[1], rows)
        layers = decoder(self.model)
        runs = [
            partial(self._run, layer, _compiled(layer) if compiled else layer.forward, row, number, checkpointing)
            for number, (layer, row) in enumerate(zip(layers.layers, rows, strict=True))
        ]
        with attending(layers, NAME), running(layers.layers, runs):
            return layers(inputs_embeds=embeddings, position_ids=positions[None], use_cache=False).last_hidden_state

    def _run(
        self,
        layer: torch.nn.Module,
        forward: Callable[..., torch.Tensor],
        row: PackedRow,
        number: int,
        checkpointing: bool,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **options: Any,
    ) -> torch.Tensor:
        """One layer; what it needs is set up in here, because checkpointing runs it again in the backward."""
        rows = hidden.shape[1] - row.skipped
        cos, sin = (table[:, table.shape[1] - rows :] for table in position_embeddings)
        options |= row.options(number)

        def run(hidden: torch.Tensor) -> torch.Tensor:
            with attending(decoder(self.model), NAME), self._adapting(row.adapted), self._reading(layer, row):
                return forward(hidden[:, row.skipped :], position_embeddings=(cos, sin), **options)

        if checkpointing and torch.is_grad_enabled():
            return checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
        return run(hidden)

    def _reading(self, layer: torch.nn.Module, row: PackedRow) -> AbstractContextManager:
        """Keeps the MLP to the rows that are read."""
        if row.read is None:
            return nullcontext()
        return mlp_on(layer, row.read, partial(self._adapting, row.adapted_read))

    @contextmanager
    def _adapting(self, rows: Rows) -> Iterator[None]:
        before, self._adapted = self._adapted, rows
        try:
            yield
        finally:
            self._adapted = before

    def _adapt(self, layer: Any, args: tuple, out: torch.Tensor) -> torch.Tensor:
        """Add the active adapters' low-rank update (LoRA, arXiv 2106.09685) to the adapted rows of ``out``."""
        rows = self._adapted
        if isinstance(rows, int) and not rows:
            return out
        adapted = args[0].index_select(1, rows) if isinstance(rows, torch.Tensor) else args[0][:, :rows]
        for name in layer.active_adapters:
            down, up = layer.lora_A[name], layer.lora_B[name]
            update = (up(down(adapted.to(down.weight.dtype))) * layer.scaling[name]).to(out.dtype)
            if isinstance(rows, torch.Tensor):
                out = out.index_add(1, rows, update)
            else:
                out = out + pad(update, (0, 0, 0, out.shape[1] - update.shape[1]))
        return out


def _compiled(layer: torch.nn.Module) -> Callable[..., torch.Tensor]:
    return torch.compile(layer.forward, fullgraph=True, dynamic=True)


def _check(count: int, rows: Sequence[PackedRow]) -> None:
    for number, row in enumerate(rows):
        count -= row.skipped
        if count != row.running:
            raise ValueError(f"layer {number} gets {count} rows, and its packed row runs {row.running}")
