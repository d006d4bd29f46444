"""The single-pass student: [P | C | B | P' | segments] through the model in one forward (identities 1 and 5).

Importing this file makes ``lcc_bottleneck`` a transformers attention implementation that takes the layout as a keyword.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import AttentionInterface, PreTrainedModel

import lcc_kernels as lk

from .attention import attending, refuse_variants
from .kv import decoder

NAME = "lcc_bottleneck"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: lk.BottleneckLayout | None = None,
    **options: object,
) -> tuple[torch.Tensor, None]:
    """``lcc_kernels.bottleneck_attention`` as transformers calls it.

    Args:
        query: (batch, heads, total, head_dim); key and value (batch, kv_heads, total, head_dim), rotated.
        attention_mask: None; the layout says who sees whom.
        layout: passed to the model's forward as a keyword.

    Returns:
        (batch, total, heads, head_dim), and no weights.

    Raises:
        ValueError: no layout, a mask or dropout, or an attention variant that the op does not compute.
    """
    if layout is None:
        raise ValueError(f"{NAME} needs the keyword layout=BottleneckLayout(...) in the model's forward")
    refuse_variants(module, NAME, options, "use two passes instead")
    if attention_mask is not None or dropout:
        raise ValueError(
            f"{NAME} takes its mask from the layout and has no dropout: pass no mask and call model.eval()"
        )
    out = lk.bottleneck_attention(query, key, value, layout, scale=scaling)
    assert isinstance(out, torch.Tensor)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, packed_attention)


def packed_embeddings(
    model: PreTrainedModel, row_ids: torch.Tensor, layout: lk.BottleneckLayout, buffers: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Embeddings of a packed row: tokens everywhere but in B.

    Args:
        row_ids: (total,) int64; what it holds in B does not matter, if it is in the vocabulary.
        buffers: (K, H) for each document of the layout, differentiable.

    Returns:
        (1, total, H) in the model's dtype.

    Raises:
        ValueError: the counts of documents, rows or buffer tokens differ.
    """
    wanted = [document.buffer for document in layout.documents]
    if len(row_ids) != layout.total or [len(buffer) for buffer in buffers] != wanted:
        raise ValueError(f"the layout has {layout.total} rows and buffers of {wanted} tokens; got {len(row_ids)} rows")
    embeddings = model.get_input_embeddings()(row_ids)
    pieces, done = [], 0
    for document, buffer in zip(layout.documents, buffers, strict=True):
        pieces += [embeddings[done : document.buffer_rows.start], buffer.to(embeddings.dtype)]
        done = document.buffer_rows.stop
    return torch.cat([*pieces, embeddings[done:]])[None]


def packed_forward(model: PreTrainedModel, embeddings: torch.Tensor, layout: lk.BottleneckLayout) -> torch.Tensor:
    """Last hidden states (1, total, H) of a packed row; the LoRA in ``model``, if any, acts on C and B alone.

    Args:
        model: a causal language model in eval mode, plain or with a peft LoRA.
        embeddings: (1, total, H), see ``packed_embeddings``.

    Raises:
        ValueError: the model attends in a way that the op does not compute.
    """
    layers = decoder(model)
    positions = layout.position_ids(embeddings.device)[None]
    with attending(layers, NAME), adapter_rows(model, layout.lora_slices()):
        return layers(
            inputs_embeds=embeddings, position_ids=positions, layout=layout, use_cache=False
        ).last_hidden_state


@contextmanager
def adapter_rows(model: torch.nn.Module, rows: Sequence[slice]) -> Iterator[None]:
    """Let every LoRA in ``model`` act on these rows (dimension 1) alone, inside the block."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    with ExitStack() as undo:
        for layer in layers:
            undo.callback(_switch, layer, not layer.disable_adapters)
            _switch(layer, False)
            handle = layer.register_forward_hook(lambda layer, args, out: _adapt(layer, args[0], out, rows))
            undo.callback(handle.remove)
        yield


def _switch(layer: LoraLayer, on: bool) -> None:
    """``enable_adapters`` without what it does to ``requires_grad``."""
    layer._disable_adapters = not on


def _adapt(layer: Any, x: torch.Tensor, out: torch.Tensor, rows: Sequence[slice]) -> torch.Tensor:
    """Add the active adapters' low-rank update (LoRA, arXiv 2106.09685) to ``rows`` of ``out``."""
    for name in layer.active_adapters:
        down, up = layer.lora_A[name], layer.lora_B[name]
        for where in rows:
            update = up(down(x[:, where].to(down.weight.dtype))) * layer.scaling[name]
            out[:, where] += update.to(out.dtype)
    return out
